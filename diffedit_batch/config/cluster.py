"""How workers are placed, and how each keeps its device busy."""

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator

from diffedit_batch.config.section import Section, off

_RANGE = re.compile(r"([1-9][0-9]*)\.\.([1-9][0-9]*)")
_LABEL = r"[a-zA-Z0-9](?:[\w.-]{0,61}[a-zA-Z0-9])?"
_LABEL_KEY = re.compile(rf"(?:{_LABEL}/)?{_LABEL}", re.ASCII)
LABEL_CONDITION = re.compile(rf"(!?)(?:in\(({_LABEL}(?:, ?{_LABEL})*)\)|({_LABEL}))", re.ASCII)
"""Of Ray's label selectors: `value`, `!value`, `in(one, other)`, `!in(one, other)`."""


class EngineConfig(Section):
    """How one worker keeps its device busy."""

    batch_size: int | None = Field(
        None,
        ge=1,
        le=512,
        description="network evaluations in one call; null: what keeps the device busy, and fits",
    )
    vae_batch_size: int | None = Field(
        None, ge=1, le=64, description="images in one call of the VAE; null: 8 on a GPU, 1 on a CPU"
    )
    compile: Annotated[Literal["auto", "off", "full"], BeforeValidator(off)] = Field(
        "auto", description="full calls; auto: on a GPU that is given rows enough to repay it"
    )
    loader_threads: int = Field(2, ge=1, le=64)
    writer_threads: int = Field(2, ge=1, le=64)


class ClusterConfig(Section):
    """What is asked of Ray."""

    address: str | None = Field(
        None, description="null: RAY_ADDRESS if set, else Ray on this machine"
    )
    workers: int | str = Field(
        "auto",
        description="auto: one per GPU there is, or per node without GPUs; a number; or `2..8`",
    )
    gpus_per_worker: float = Field(1.0, ge=0, le=16, description="a fraction, or whole GPUs")
    # A reservation only: whole CPUs would leave a small machine waiting for a slot for ever.
    cpus_per_worker: float = Field(0.1, ge=0)
    threads_per_worker: int | None = Field(
        None, ge=1, description="null: torch's own choice on a GPU, cores / workers on a CPU"
    )
    label_selector: dict[str, str] = Field(
        default_factory=dict, description="labels of the nodes that workers may run on"
    )
    start_timeout_s: float = Field(
        600.0, gt=0, description="patience while no worker is ready, at the start or later"
    )
    hang_timeout_s: float = Field(
        900.0, gt=0, description="patience with a worker that makes no progress; it is replaced"
    )

    @property
    def worker_range(self) -> tuple[int, int] | None:
        """Fewest and most workers; None with `auto`."""
        if isinstance(self.workers, int):
            return self.workers, self.workers
        found = _RANGE.fullmatch(self.workers)
        return (int(found[1]), int(found[2])) if found else None

    @field_validator("workers", mode="before")
    @classmethod
    def _is_auto_a_number_or_a_range(cls, workers: object) -> object:
        found = _RANGE.fullmatch(workers) if isinstance(workers, str) else None
        is_number = isinstance(workers, int) and not isinstance(workers, bool) and workers >= 1
        if workers == "auto" or is_number or (found and int(found[1]) <= int(found[2])):
            return workers
        raise ValueError(
            "write `auto` (one for every GPU there is), a number such as 4, or the fewest and the"
            f" most such as 2..8 (got {workers!r})"
        )

    @field_validator("gpus_per_worker")
    @classmethod
    def _is_a_fraction_or_whole(cls, gpus: float) -> float:
        if gpus > 1 and gpus % 1:
            raise ValueError(
                f"write a fraction of one GPU such as 0.5, or a whole number (got {gpus:g})"
            )
        return gpus

    @field_validator("label_selector")
    @classmethod
    def _selects_labels(cls, selector: dict[str, str]) -> dict[str, str]:
        for key, condition in selector.items():
            if not _LABEL_KEY.fullmatch(key) or not LABEL_CONDITION.fullmatch(condition):
                raise ValueError(
                    f"cannot read {key}: {condition!r}; write a label and its value, `!value`,"
                    " `in(one, other)` or `!in(one, other)`, e.g."
                    " ray.io/accelerator-type: in(L4, A10G)"
                )
        return selector
