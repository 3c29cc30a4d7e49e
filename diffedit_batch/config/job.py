"""A whole job: its sections together, and what follows from them."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from diffedit_batch.config.cluster import ClusterConfig, EngineConfig
from diffedit_batch.config.edit import EditConfig
from diffedit_batch.config.files import InputConfig, OutputConfig
from diffedit_batch.config.models import (
    EMBEDDED,
    CaptionsConfig,
    ModelConfig,
    PromptsConfig,
    SafetyConfig,
    ScoresConfig,
)
from diffedit_batch.config.section import Section
from diffedit_batch.errors import ConfigError

ROWS_THAT_REPAY_COMPILING = 750
"""Of one worker. A minute or two of compiling is expected to save some 0.08 s of a row."""

_INSTRUCT_PIX2PIX = {"min_clip_text": 0.2, "min_clip_direction": 0.2, "min_clip_image": 0.7}
"""Of its authors' filter, for ViT-L/14."""

_UPLOADED = "/runtime_resources/working_dir_files/"
"""Part of the path of every folder that Ray unpacks a job's files in."""


class FilterConfig(Section):
    """Which edits are good enough. The others stay too, and their results say why not."""

    min_clip_text: float | None = Field(
        None, ge=-1, le=1, description="null: 0.2 where there is a CLIP model"
    )
    min_clip_direction: float | None = Field(
        None, ge=-1, le=1, description="null: 0.2 where there is a CLIP model"
    )
    min_clip_image: float | None = Field(
        None, ge=-1, le=1, description="null: 0.7 where there is a CLIP model"
    )
    max_lpips: float | None = Field(None, ge=0, description="needs scores.lpips")
    min_background_psnr: float | None = Field(None, ge=0, le=100, description="dB")
    min_map_contrast: float | None = Field(None, ge=0)
    min_mask_coverage: float | None = Field(None, ge=0, le=1, description="share of the picture")
    max_mask_coverage: float | None = Field(None, ge=0, le=1, description="share of the picture")

    @model_validator(mode="after")
    def _leaves_room(self) -> Self:
        low, high = self.min_mask_coverage, self.max_mask_coverage
        if low is not None and high is not None and low > high:
            raise ValueError(f"min_mask_coverage {low} is above max_mask_coverage {high}")
        return self


class JobConfig(Section):
    """A whole job."""

    model: ModelConfig
    edit: EditConfig = EditConfig()
    prompts: PromptsConfig = PromptsConfig()
    captions: CaptionsConfig = CaptionsConfig()
    scores: ScoresConfig = ScoresConfig()
    filter: FilterConfig = FilterConfig()
    safety: SafetyConfig = SafetyConfig()
    input: InputConfig
    output: OutputConfig
    engine: EngineConfig = EngineConfig()
    cluster: ClusterConfig = ClusterConfig()
    seed: int = Field(0, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _has_the_models_it_needs(self) -> Self:
        given = self.filter.model_dump(exclude_none=True)
        needing = [f"filter.{name}" for name in given if "clip" in name]
        needing += [f"edit.keep_best {self.edit.keep_best}"] if self.edit.asks_clip else []
        problems = []
        if needing and self.scores.clip is None:
            problems.append(f"{', '.join(needing)}: needs a CLIP model, see scores.clip")
        if self.filter.max_lpips is not None and self.scores.lpips is None:
            problems.append("filter.max_lpips: needs a file of LPIPS, see scores.lpips")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def thresholds(self) -> dict[str, float]:
        """Those of `filter` that are in force."""
        default = _INSTRUCT_PIX2PIX if self.scores.clip is not None else {}
        return {**default, **self.filter.model_dump(exclude_none=True)}

    @property
    def checked_model(self) -> ModelConfig | None:
        """The model whose safety checker looks at edits; None: none does."""
        return None if self.safety.policy == "off" else self.model

    @property
    def device(self) -> Literal["cuda", "cpu"]:
        """What workers compute on."""
        return "cuda" if self.cluster.gpus_per_worker > 0 else "cpu"

    @property
    def bundle_rows(self) -> int:
        """Rows handed to a worker at once, of which it holds two such bundles."""
        # With the two bundles of a worker, calls are full even where rows have come to their end.
        return self.engine.batch_size or (64 if self.device == "cuda" else 32)

    def with_compile_decided(self, num_rows: int, num_workers: int) -> "JobConfig":
        """A copy with `engine.compile: auto` turned off on a CPU, and where so many workers get too
        few rows to repay it.
        """
        repays = self.device == "cuda" and num_rows >= ROWS_THAT_REPAY_COMPILING * num_workers
        if self.engine.compile != "auto" or repays:
            return self
        engine = self.engine.model_copy(update={"compile": "off"})
        return self.model_copy(update={"engine": engine})

    def with_absolute_paths(self) -> "JobConfig":
        """A copy whose local paths mean the same in every process, whatever folder it runs in.

        Raises:
            ConfigError: the output would be deleted with what `ray job submit` has uploaded.
        """
        output = self.output.model_copy(update={"uri": _absolute(self.output.uri)})
        if _UPLOADED in output.uri:
            problem = (
                f"output.uri {self.output.uri!r}: lies in the folder that `ray job submit` uploads,"
                " which Ray deletes; name a folder that every node sees, or an object store"
            )
            raise ConfigError("config", [problem])
        given = {"manifest": self.input.manifest, "image_root": self.input.image_root}
        places = {name: _place(path) for name, path in given.items() if path is not None}
        models: dict[str, Section] = {"input": self.input.model_copy(update=places)}
        for name in ("model", "prompts", "captions"):
            section = getattr(self, name)
            # A folder that happens to be called `demo` is `./demo`.
            if section.id != EMBEDDED and Path(section.id).expanduser().is_dir():
                models[name] = section.model_copy(update={"id": _absolute(section.id)})
        scores = {}
        if self.scores.clip is not None and Path(self.scores.clip).expanduser().is_dir():
            scores["clip"] = _absolute(self.scores.clip)
        if self.scores.lpips is not None:
            scores["lpips"] = _place(self.scores.lpips)
        models["scores"] = self.scores.model_copy(update=scores)
        return self.model_copy(update={"output": output, **models})


def _absolute(path: str) -> str:
    return path if "://" in path else str(Path(path).expanduser().resolve())


def _place(path: str) -> str:
    """An absolute path in which links stay: the images of a manifest lie beside the link to it, and
    what a link leads to may have a name that says nothing.
    """
    return path if "://" in path else str(Path(path).expanduser().absolute())
