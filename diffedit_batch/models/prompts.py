"""Prompts for a concept, written by a T5-like model (Raffel et al., arXiv 1910.10683)."""

import hashlib
import re
from functools import partial
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from diffedit_batch.config import PromptsConfig
from diffedit_batch.errors import RowError
from diffedit_batch.models.hub import SINGLE_MODEL, fetch
from diffedit_batch.models.identity import identify_prompt_writer
from diffedit_batch.models.loading import DTYPES, explained, tried_out

_ATTEMPTS = 2


class PromptWriter:
    """Writes prompts for one concept at a time.

    Not for several threads at once: sampling goes through torch's global random state.

    Args:
        model: a sequence-to-sequence model.
        tokenizer: its tokenizer.
        config: the instruction and how answers are sampled.
        seed: of the sampling.
    """

    def __init__(self, model: Any, tokenizer: Any, config: PromptsConfig, seed: int) -> None:
        self._model, self._tokenizer = model.eval(), tokenizer
        self._config = config
        self._seed = seed

    @classmethod
    def load(cls, config: PromptsConfig, device: str, seed: int) -> "PromptWriter":
        """The configured model on `device` (`cuda`, `cpu`).

        Raises:
            ModelError: it cannot be loaded or used; says what was tried and what to do.
        """
        identity = identify_prompt_writer(config)
        where = {
            "revision": config.revision or "main",
            "local_files_only": config.local_files_only,
            # Left open, a model that brings code along would be asked about at the terminal.
            "trust_remote_code": False,
        }
        with explained(config, identity):
            files = partial(snapshot_download, identity.source, allow_patterns=SINGLE_MODEL)
            fetch(config, identity, files)
            tokenizer = AutoTokenizer.from_pretrained(identity.source, **where)
            model = AutoModelForSeq2SeqLM.from_pretrained(
                identity.source,
                dtype=DTYPES[config.dtype or ("float32" if device == "cpu" else "bfloat16")],
                use_safetensors=True,
                **where,
            )
        writer = cls(model.to(device), tokenizer, config, seed)
        with tried_out(config.id, device):
            writer._generate("cat", 0)
        return writer

    def write(self, concept: str) -> tuple[str, ...]:
        """`num_prompts` prompts for a concept: the same for the same seed, whatever was written
        before or is written elsewhere.

        Blank answers and echoes of the instruction are left out; a second attempt with another seed
        fills the gaps.

        Raises:
            RowError: stage `prompts`; there are gaps even so.
        """
        instruction = self._config.template.replace("{concept}", concept)
        good: list[str] = []
        bad: list[str] = []
        for attempt in range(_ATTEMPTS):
            for answer in self._generate(concept, attempt):
                (bad if is_degenerate(answer, instruction) else good).append(answer)
            if len(good) >= self._config.num_prompts:
                return tuple(good[: self._config.num_prompts])
        raise RowError(
            "prompts",
            "DegeneratePrompts",
            f"{len(bad)} of {len(good) + len(bad)} prompts generated for {concept!r} are blank or"
            f" repeat the instruction, e.g. {bad[0][:80]!r}",
        )

    @torch.no_grad()
    def _generate(self, concept: str, attempt: int) -> list[str]:
        instruction = self._config.template.replace("{concept}", concept)
        tokens = self._tokenizer(instruction, return_tensors="pt").to(self._model.device)
        digest = hashlib.sha256(f"{self._seed}\0{concept}\0{attempt}".encode()).digest()
        with torch.random.fork_rng(devices=cuda_devices(self._model)):
            torch.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
            answers = self._model.generate(
                input_ids=tokens.input_ids,
                attention_mask=tokens.attention_mask,
                do_sample=True,
                num_beams=1,
                temperature=self._config.temperature,
                top_k=self._config.top_k,
                top_p=1.0,
                num_return_sequences=self._config.num_prompts,
                max_new_tokens=self._config.max_new_tokens,
            )
        texts: list[str] = self._tokenizer.batch_decode(answers, skip_special_tokens=True)
        return [" ".join(text.split()) for text in texts]


def is_degenerate(answer: str, instruction: str) -> bool:
    """Whether an answer is blank or has a sentence of the instruction in it."""
    said = _sentences(answer)
    return not said or not said.isdisjoint(_sentences(instruction))


def cuda_devices(model: Any) -> list[int]:
    """The devices whose random state sampling with a model changes, beside the CPU's."""
    return [model.device.index or 0] if model.device.type == "cuda" else []


def _sentences(text: str) -> set[str]:
    """Sentences of a text, without punctuation, case and spacing."""
    words = (" ".join(re.findall(r"\w+", part.lower())) for part in re.split(r"[.!?\n]", text))
    return {sentence for sentence in words if sentence}
