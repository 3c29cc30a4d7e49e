"""A prompt writer of scenes: a small T5, built and trained from scratch.

Asked for a caption of pictures that contain a concept, it writes captions of scenes that do: those
of the training scenes that name the concept, as often as they occur there. A concept is a ground,
a colour, a shape, or a colour and a shape. Pairs that are held out of all training on pictures are
not held out here, or it could not name them.

Shapes: B questions of a batch, C concepts, M different captions, L tokens.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import normalizers
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    T5Tokenizer,
)

from diffedit_batch.config import PromptsConfig
from diffedit_batch.demo.components import WORDS
from diffedit_batch.demo.optimise import Stage, optimise
from diffedit_batch.demo.scenes import (
    TRAIN_SEEDS,
    SceneSpec,
    caption,
    sample_scene,
)

logger = logging.getLogger(__name__)

INSTRUCTION = PromptsConfig().template
PROMPT_WRITER = Stage(steps=5_700, batch_size=128, learning_rate=2e-3)
NUM_SCENES = 40_000
_WIDTH = 64
_PAD, _END, _UNKNOWN = "<pad>", "</s>", "<unk>"
# Sampled at a lower temperature than it was learned at, it hardly ever draws a slip that training
# left possible.
_LEARNING_TEMPERATURE = 2.0
_IGNORED = -100  # what the loss of transformers leaves out


@dataclass(frozen=True)
class PromptWriter:
    """What writing prompts consists of."""

    model: T5ForConditionalGeneration
    tokenizer: PreTrainedTokenizerFast


def build_prompt_writer(seed: int) -> PromptWriter:
    """Return an untrained prompt writer."""
    torch.manual_seed(seed)
    tokenizer = _build_tokenizer()
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=_WIDTH,
        d_kv=_WIDTH // 4,
        d_ff=2 * _WIDTH,
        num_layers=2,
        num_heads=4,
        # Answers are drawn from all it gives a chance to, so it must be sure of its grammar.
        dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    return PromptWriter(T5ForConditionalGeneration(config), tokenizer)


def save_prompt_writer(writer: PromptWriter, folder: Path) -> None:
    """Write model and tokenizer, to be loaded with `from_pretrained`."""
    writer.model.save_pretrained(folder)
    writer.tokenizer.save_pretrained(folder)


def name_concepts(spec: SceneSpec) -> list[str]:
    """Return every concept that the caption of a scene names."""
    concepts = [spec.ground]
    for item in spec.objects:
        concepts += [item.color, item.shape, f"{item.color} {item.shape}"]
    return concepts


def draw_answers(num_scenes: int) -> dict[str, list[str]]:
    """Return the captions of the first training scenes by the concepts that they name."""
    answers: dict[str, list[str]] = {}
    for spec in map(sample_scene, TRAIN_SEEDS[:num_scenes]):
        for concept in name_concepts(spec):
            answers.setdefault(concept, []).append(caption(spec))
    return answers


def train_prompt_writer(
    output: Path,
    stage: Stage = PROMPT_WRITER,
    num_scenes: int = NUM_SCENES,
    seed: int = 0,
    device: str = "cpu",
) -> None:
    """Train, or go on with training; the newest writer is in `output / "prompt_writer"`."""
    writer = build_prompt_writer(seed)
    drawn = draw_answers(num_scenes)
    questions = _tokenize(writer, [INSTRUCTION.format(concept=concept) for concept in drawn])
    texts = _tokenize(writer, [text for captions in drawn.values() for text in captions])
    answers = torch.split(texts, [len(captions) for captions in drawn.values()])
    logger.info("drew captions of %d concepts", len(drawn))

    def loss_of(generator: np.random.Generator, batch_size: int) -> Tensor:
        concepts = generator.integers(len(answers), size=batch_size)
        chosen = [
            answers[concept][generator.integers(len(answers[concept]))] for concept in concepts
        ]
        return answer_loss(writer, questions[concepts].to(device), torch.stack(chosen).to(device))

    def save(average: nn.Module) -> None:
        save_prompt_writer(PromptWriter(average, writer.tokenizer), output / "prompt_writer")

    output.mkdir(parents=True, exist_ok=True)
    checkpoint = output / "prompt_writer.pt"
    optimise(writer.model.to(device), loss_of, stage, checkpoint, seed, on_save=save)


def answer_loss(writer: PromptWriter, questions: Tensor, answers: Tensor) -> Tensor:
    """Return the error of the words of answers (B, L) to questions (B, L'), both padded."""
    is_word = questions != writer.tokenizer.pad_token_id
    labels = answers.masked_fill(answers == writer.tokenizer.pad_token_id, _IGNORED)
    output = writer.model(input_ids=questions, attention_mask=is_word.long(), labels=labels)
    logits = output.logits.flatten(0, 1) / _LEARNING_TEMPERATURE
    return functional.cross_entropy(logits, labels.flatten(), ignore_index=_IGNORED)


def _tokenize(writer: PromptWriter, texts: list[str]) -> Tensor:
    tokens: Tensor = writer.tokenizer(texts, padding=True, return_tensors="pt").input_ids
    return tokens


def _build_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer in T5's format: whole words, in small letters, and punctuation."""
    words = dict.fromkeys(
        [*WORDS, *INSTRUCTION.format(concept="").lower().replace(".", "").split()]
    )
    pieces = [_PAD, _END, _UNKNOWN, ".", *(f"▁{word}" for word in words)]
    tokenizer = T5Tokenizer(vocab=[(piece, 0.0) for piece in pieces], extra_ids=0)
    # Wrapped, since a T5Tokenizer forgets its normalizer when it is loaded.
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        pad_token=_PAD,
        eos_token=_END,
        unk_token=_UNKNOWN,
    )
