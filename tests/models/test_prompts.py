from pathlib import Path
from typing import Any

import pytest
import torch

from diffedit_batch.config import PromptsConfig
from diffedit_batch.errors import ModelError, RowError
from diffedit_batch.models.prompts import PromptWriter, is_degenerate

INSTRUCTION = (
    "Provide a caption for images containing a dog. The captions should be in English and should be"
    " no longer than 150 characters."
)


def config(folder: Path, **values: Any) -> PromptsConfig:
    return PromptsConfig.model_validate(
        {"id": str(folder), "num_prompts": 4, "max_new_tokens": 8, **values}
    )


@pytest.fixture(scope="module")
def writer(tiny_prompt_writer: Path) -> PromptWriter:
    return PromptWriter.load(config(tiny_prompt_writer), "cpu", seed=0)


def test_prompts_depend_on_the_concept_and_the_seed_alone(
    writer: PromptWriter, tiny_prompt_writer: Path
) -> None:
    dog, cat = writer.write("dog"), writer.write("cat")
    assert len(dog) == len(cat) == 4
    assert dog != cat
    torch.manual_seed(1)  # another worker, another past
    other = PromptWriter.load(config(tiny_prompt_writer), "cpu", seed=0)
    assert (other.write("cat"), other.write("dog")) == (cat, dog)
    assert PromptWriter.load(config(tiny_prompt_writer), "cpu", seed=1).write("dog") != dog


def test_the_global_random_state_is_left_alone(writer: PromptWriter) -> None:
    before = torch.get_rng_state()
    writer.write("dog")
    assert torch.equal(torch.get_rng_state(), before)


def test_the_whole_instruction_reaches_the_model(
    tiny_prompt_writer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = PromptWriter.load(config(tiny_prompt_writer), "cpu", seed=0)
    asked: list[str] = []
    tokenizer = whole._tokenizer

    class Listening:
        def __call__(self, text: str, **options: Any) -> Any:
            asked.append(text)
            return tokenizer(text, **options)

        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

    monkeypatch.setattr(whole, "_tokenizer", Listening())
    whole.write("dog")
    assert set(asked) == {INSTRUCTION}


def test_a_second_attempt_with_another_seed_fills_gaps(
    writer: PromptWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [["a dog", "", INSTRUCTION, "dogs"], ["", "one dog", "two dogs", "three dogs"]]
    monkeypatch.setattr(writer, "_generate", lambda concept, attempt: answers[attempt])
    assert writer.write("dog") == ("a dog", "dogs", "one dog", "two dogs")


def test_attempts_differ(writer: PromptWriter) -> None:
    assert writer._generate("dog", 0) != writer._generate("dog", 1)


def test_a_concept_without_enough_prompts_fails_with_the_reason(
    writer: PromptWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "_generate", lambda concept, attempt: ["", "", "", "a dog"])
    with pytest.raises(RowError, match=r"6 of 8 prompts generated for 'dog' are blank") as failed:
        writer.write("dog")
    assert (failed.value.stage, failed.value.kind) == ("prompts", "DegeneratePrompts")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("", True),
        (" .", True),
        ("Provide a caption for images containing a dog", True),
        ("the captions should be in english and should be no longer than 150 characters", True),
        ("A dog. Provide a caption for images containing a dog.", True),
        ("a dog", False),
        ("a dog on the beach.", False),
    ],
)
def test_what_is_degenerate(answer: str, expected: bool) -> None:
    assert is_degenerate(answer, INSTRUCTION) is expected


def test_a_model_that_is_not_there(tmp_path: Path, tiny_captioner: Path) -> None:
    with pytest.raises(ModelError, match=r"prompts\.id './missing': no such folder"):
        PromptWriter.load(PromptsConfig(id="./missing"), "cpu", 0)
    with pytest.raises(ModelError, match=r"has no config\.json"):
        PromptWriter.load(PromptsConfig(id=str(tmp_path)), "cpu", 0)
    with pytest.raises(ModelError, match="cannot load model"):
        PromptWriter.load(PromptsConfig(id=str(tiny_captioner)), "cpu", 0)
