import logging
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import DEMO_WEIGHTS
from transformers import AutoTokenizer, T5ForConditionalGeneration

from diffedit_batch.demo.optimise import Stage
from diffedit_batch.demo.prompt_writer import (
    INSTRUCTION,
    build_prompt_writer,
    draw_answers,
    name_concepts,
    train_prompt_writer,
)
from diffedit_batch.demo.scenes import (
    COLORS,
    GROUNDS,
    SHAPES,
    SceneObject,
    SceneSpec,
    caption,
)

STAGE = Stage(steps=2, batch_size=4, learning_rate=1e-3)
PAIRS = [f"{color} {shape}" for color in COLORS for shape in SHAPES]


def write(folder: Path, concepts: list[str]) -> list[str]:
    """Sixteen prompts for each concept, from a saved writer loaded as any checkpoint is."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = T5ForConditionalGeneration.from_pretrained(folder).eval()
    questions = [INSTRUCTION.format(concept=concept) for concept in concepts]
    torch.manual_seed(0)
    tokens = model.generate(
        **tokenizer(questions, padding=True, return_tensors="pt"),
        do_sample=True,
        num_return_sequences=16,
        temperature=0.8,
        top_k=10,
        max_new_tokens=128,
    )
    texts: list[str] = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return texts


def scene(*pairs: tuple[str, str], ground: str = "sand") -> SceneSpec:
    return SceneSpec(
        tuple(SceneObject(color, shape, 0, 0, 0, 0) for color, shape in pairs), ground, 0, 0
    )


def is_caption(text: str) -> bool:
    """Whether a scene has this caption: at most two objects, apart in colour and shape."""
    ground = text.split()[-1]
    pairs = [(color, shape) for color in COLORS for shape in SHAPES if f"{color} {shape}" in text]
    pairs.sort(key=lambda pair: text.index(" ".join(pair)))
    apart = len({color for color, _ in pairs}) == len({shape for _, shape in pairs}) == len(pairs)
    return (
        apart
        and len(pairs) <= 2
        and ground in GROUNDS
        and text == caption(scene(*pairs, ground=ground))
    )


def test_the_shipped_writer_always_names_its_concept() -> None:
    concepts = [*GROUNDS, *COLORS, *SHAPES, *PAIRS]
    texts = write(DEMO_WEIGHTS / "prompt_writer", concepts)
    for index, concept in enumerate(concepts):
        answers = texts[16 * index : 16 * (index + 1)]
        assert all(re.search(rf"\b{concept}\b", answer) for answer in answers), concept
        assert all(is_caption(answer) for answer in answers), concept
        assert len(set(answers)) > 4, concept


def test_training_leaves_a_writer_that_loads(tmp_path: Path) -> None:
    train_prompt_writer(tmp_path, STAGE, num_scenes=20)
    assert len(write(tmp_path / "prompt_writer", ["circle", "a word it cannot know"])) == 32


def test_a_run_that_was_stopped_continues(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        for steps in (1, 2):
            train_prompt_writer(tmp_path, replace(STAGE, steps=steps), num_scenes=20)
    assert "prompt_writer: continues at step 1" in caplog.text


def test_a_scene_answers_for_all_it_shows() -> None:
    assert name_concepts(scene()) == ["sand"]
    expected = ["sand", "red", "circle", "red circle", "blue", "star", "blue star"]
    assert name_concepts(scene(("red", "circle"), ("blue", "star"))) == expected


def test_answers_name_their_concept() -> None:
    answers = draw_answers(300)
    assert len(answers["circle"]) > len(answers["grass"]) > len(answers["red circle"])
    for concept, texts in answers.items():
        assert all(re.search(rf"\b{concept}\b", text) and is_caption(text) for text in texts)


def test_words_are_tokens_whatever_their_case(tmp_path: Path) -> None:
    build_prompt_writer(0).tokenizer.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for concept in [*GROUNDS, *COLORS, *SHAPES, *PAIRS]:
        text = INSTRUCTION.format(concept=concept)
        tokens = tokenizer(text).input_ids
        assert tokens == tokenizer(text.upper()).input_ids
        assert tokenizer.unk_token_id not in tokens
        # Every word, the two full stops, the end.
        assert len(tokens) == len(text.split()) + 3
