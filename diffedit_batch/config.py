"""The configuration of a job: typed, frozen, unknown keys refused, every problem reported at once.

A file is complete in itself (no inheritance, no interpolation); `--set section.key=value` wins over
the file. Where `edit.*` leaves a key at null, the preset decides; `EditConfig.resolved()` shows
with what.
"""

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from diffedit_batch.errors import ConfigError
from diffedit_batch.redact import has_credentials, is_signed

ALGORITHM_VERSION = 1
"""Part of every fingerprint: raise it when the same inputs give other pixels."""

EMBEDDED = "demo"
"""What `model.id` calls the embedded model; so `prompts.id` and `captions.id` theirs."""

ROWS_THAT_REPAY_COMPILING = 750
"""Of one worker. A minute or two of compiling is expected to save some 0.08 s of a row."""

_INSTRUCT_PIX2PIX = {"min_clip_text": 0.2, "min_clip_direction": 0.2, "min_clip_image": 0.7}
"""Of its authors' filter, for ViT-L/14."""

_UPLOADED = "/runtime_resources/working_dir_files/"
"""Part of the path of every folder that Ray unpacks a job's files in."""


def _off(value: object) -> object:
    """`off`, which YAML reads as false."""
    return "off" if value is False else value


Preset = Literal["tuned", "paper", "diffusers"]
Dtype = Literal["float32", "float16", "bfloat16"]
M = TypeVar("M", bound=BaseModel)

_RANGE = re.compile(r"([1-9][0-9]*)\.\.([1-9][0-9]*)")
_LABEL = r"[a-zA-Z0-9](?:[\w.-]{0,61}[a-zA-Z0-9])?"
_LABEL_KEY = re.compile(rf"(?:{_LABEL}/)?{_LABEL}", re.ASCII)
LABEL_CONDITION = re.compile(rf"(!?)(?:in\(({_LABEL}(?:, ?{_LABEL})*)\)|({_LABEL}))", re.ASCII)
"""Of Ray's label selectors: `value`, `!value`, `in(one, other)`, `!in(one, other)`."""
_YOUNGER_KEYS = ("mask_grow", "num_seeds", "keep_best")
"""Keys of `edit` that came after the first results."""

_ENCODER = json.JSONEncoder(sort_keys=True, ensure_ascii=True, separators=(",", ":"))


class Section(BaseModel):
    """Base of all sections."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ModelConfig(Section):
    """Which model, and how it is held in memory."""

    id: str = Field(description="hub id, local folder, or `demo` for the embedded model")
    revision: str | None = Field(None, description="commit, tag or branch of a hub id")
    variant: str | None = Field(None, description="weight variant of a hub id, e.g. `fp16`")
    dtype: Dtype | None = Field(None, description="null: float16 on a GPU, float32 on a CPU")
    vae_dtype: Dtype = Field("float32", description="half precision overflows in some VAEs")
    resolution: int | None = Field(None, ge=64, description="null: the size it was trained at, px")
    enable_model_cpu_offload: bool = False
    enable_vae_slicing: bool = False
    enable_vae_tiling: bool = False
    enable_attention_slicing: bool = False
    local_files_only: bool = Field(False, description="offline: never ask the hub")


class EditConfig(Section):
    """One edit. Any of these may be a manifest column and then wins for its row."""

    preset: Preset = "tuned"
    num_inference_steps: int = Field(50, ge=1, le=1000)
    inpaint_strength: float = Field(0.8, gt=0, le=1)
    guidance_scale: float | None = Field(None, ge=1, le=100)
    num_maps_per_mask: int = Field(10, ge=1, le=256)
    mask_encode_strength: float | None = Field(None, gt=0, le=1)
    mask_rule: Literal["minmax", "mean_ratio", "otsu"] | None = None
    mask_threshold: float | None = Field(None, gt=0, lt=1)
    mask_thresholding_ratio: float = Field(3.0, gt=0, le=100)
    mask_guide_radius: int | None = Field(
        None, ge=0, le=256, description="px; 0: the map is not fitted to the picture's outlines"
    )
    invert_with: Literal["empty", "caption"] | None = None
    caption_with: Literal["column", "blip", "source_prompt"] = "column"
    inversion_guidance_scale: float | None = Field(None, ge=1, le=100)
    inversion_timestep: Literal["current", "next"] | None = None
    negative_from: Literal["empty", "source_prompt"] | None = None
    paste_background: bool | None = None
    feather: int | None = Field(None, ge=0, le=64, description="px of the paste's soft edge")
    mask_grow: int = Field(
        0,
        ge=-256,
        le=256,
        description="px by which the mask, found or own, grows; below 0: shrinks",
    )

    num_seeds: int = Field(
        1, ge=1, le=64, description="seeds tried, the row's own first; only the best edit is kept"
    )
    keep_best: Literal[
        "map_contrast", "background_psnr", "clip_text", "clip_direction", "clip_image"
    ] = Field("map_contrast", description="the score by which it is the best")

    @property
    def asks_clip(self) -> bool:
        """Whether which edit is kept depends on a CLIP model."""
        return self.num_seeds > 1 and self.keep_best.startswith("clip_")

    @model_validator(mode="after")
    def _at_least_one_step(self) -> Self:
        for name in ("inpaint_strength", "mask_encode_strength"):
            strength = getattr(self, name)
            if strength is not None and int(self.num_inference_steps * strength) < 1:
                raise ValueError(
                    f"{name} {strength} of {self.num_inference_steps} steps is less than one step"
                )
        return self

    def counted(self) -> dict[str, object]:
        """What counts in a fingerprint. Younger keys that are left at their default do not: what
        was done before there were any stays done.
        """
        values = self.model_dump()
        for name in _YOUNGER_KEYS:
            if values[name] == EditConfig.model_fields[name].default:
                del values[name]
        return values

    def resolved(self) -> "EditConfig":
        """A copy in which the preset has filled every key left at null."""
        # Texts differ little here (6 scenes there and back, 50 levels: caption 50.0 to 50.3 dB,
        # empty text 49.6 to 49.9; the first of each at the current level, the second at the next).
        paper: dict[str, object] = {
            "guidance_scale": 7.5,
            "mask_encode_strength": 0.5,
            "mask_rule": "minmax",
            "mask_threshold": 0.5,
            "mask_guide_radius": 0,
            "invert_with": "caption",
            "inversion_guidance_scale": 1.0,
            "inversion_timestep": "next",
            "negative_from": "empty",
            "paste_background": True,
            "feather": 8,
        }
        by_preset = {
            # Chosen by jobs/tune.py on validation scenes, see evaluation/TUNING.md.
            "tuned": {
                **paper,
                "guidance_scale": 5.0,
                "mask_encode_strength": 0.7,
                "mask_threshold": 0.45,
                "mask_guide_radius": 16,
                "feather": 4,
            },
            "paper": paper,
            "diffusers": {
                **paper,
                "mask_rule": "mean_ratio",
                "inversion_guidance_scale": self.guidance_scale or paper["guidance_scale"],
                "negative_from": "source_prompt",
                "paste_background": False,
            },
        }
        filled = {k: v for k, v in by_preset[self.preset].items() if getattr(self, k) is None}
        return self.model_copy(update=filled)

    def override(self, values: Mapping[str, object]) -> "EditConfig":
        """A copy with some parameters replaced, checked like a file.

        Raises:
            ConfigError: a value is of the wrong type or out of range.
        """
        if not values:
            return self
        return _validated(EditConfig, {**self.model_dump(), **values}, "invalid edit parameters")


class PromptsConfig(Section):
    """The model that writes prompts for rows given by concept, and how it is asked."""

    id: str = Field(
        "google/flan-t5-large",
        description="T5-like model: hub id, local folder, or `demo` for the embedded one",
    )
    revision: str | None = Field(None, description="commit, tag or branch of a hub id")
    # T5 was trained in bfloat16; in float16 its activations overflow.
    dtype: Dtype | None = Field(None, description="null: bfloat16 on a GPU, float32 on a CPU")
    template: str = Field(
        "Provide a caption for images containing a {concept}. The captions should be in English"
        " and should be no longer than 150 characters.",
        description="the instruction; {concept} stands for the concept",
    )
    num_prompts: int = Field(16, ge=1, le=64, description="prompts of a concept")
    temperature: float = Field(0.8, gt=0, le=10)
    top_k: int = Field(10, ge=1, description="words drawn from at each step")
    max_new_tokens: int = Field(128, ge=1, le=1024)
    local_files_only: bool = Field(False, description="offline: never ask the hub")

    @field_validator("template")
    @classmethod
    def _names_the_concept(cls, template: str) -> str:
        if "{concept}" not in template:
            raise ValueError("must contain {concept}, which stands for the row's concept")
        return template


class CaptionsConfig(Section):
    """The model that captions images for rows with `edit.caption_with: blip`."""

    id: str = Field(
        "Salesforce/blip-image-captioning-base",
        description="BLIP model: hub id, local folder, or `demo` for the embedded one",
    )
    revision: str | None = Field(None, description="commit, tag or branch of a hub id")
    dtype: Dtype | None = Field(None, description="null: float16 on a GPU, float32 on a CPU")
    prefix: str = Field("a photograph of", description="how every caption begins")
    max_new_tokens: int = Field(128, ge=1, le=1024)
    batch_size: int = Field(16, ge=1, le=512, description="images captioned in one call")
    local_files_only: bool = Field(False, description="offline: never ask the hub")


class ScoresConfig(Section):
    """What edits are scored by, beside what needs no model."""

    clip: str | None = Field(
        None, description="CLIP model: hub id or local folder; null: no scores of CLIP"
    )
    revision: str | None = Field(None, description="commit, tag or branch of a hub id")
    local_files_only: bool = Field(False, description="offline: never ask the hub")

    @property
    def id(self) -> str:
        """The CLIP model by the name other sections give theirs; empty without one."""
        return self.clip or ""


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


class SafetyConfig(Section):
    """What becomes of edits that the model's own safety checker flags."""

    policy: Annotated[Literal["off", "keep", "blur", "drop"], BeforeValidator(_off)] = Field(
        "off",
        description="off: not checked; keep: only say so; blur: the file; drop: the row fails",
    )


class InputConfig(Section):
    """Where rows and images come from."""

    manifest: str = Field(description="Parquet file, folder or glob; local or s3://, gs://, ...")
    image_root: str | None = Field(None, description="null: the manifest's folder")
    allowed_schemes: list[Literal["s3", "gs", "http", "https"]] = Field(
        ["s3", "gs"], description="of image URIs that are not under image_root"
    )
    image_key: Literal["stat", "content"] = Field(
        "stat", description="what tells that an image file changed: size and age, or a hash of it"
    )
    columns: dict[str, str] = Field(
        default_factory=dict, description="our name: the manifest's name"
    )
    max_pixels: int = Field(64_000_000, ge=1, description="larger images fail, before decoding")
    max_bytes: int = Field(64_000_000, ge=1, description="larger files fail, before opening")
    size_multiple: int | None = Field(
        None, ge=8, description="px; working sizes are multiples of it; null: what the UNet halves"
    )

    @field_validator("manifest", "image_root")
    @classmethod
    def _holds_no_secret(cls, uri: str | None) -> str | None:
        return _without_secret(uri)


class OutputConfig(Section):
    """Where results go, and how many rows may fail."""

    uri: str = Field(description="folder, local or s3://, gs://, ...")
    max_failed_fraction: float = Field(0.1, ge=0, le=1)

    @property
    def preview_uri(self) -> str:
        """Where previews go: beside the output, so that the two are never mixed."""
        return f"{self.uri.rstrip('/')}-preview"

    @field_validator("uri")
    @classmethod
    def _holds_no_secret(cls, uri: str) -> str:
        _without_secret(uri)
        return uri


class EngineConfig(Section):
    """How one worker keeps its device busy."""

    batch_size: int | None = Field(
        None,
        ge=1,
        le=512,
        description="network evaluations in one call; null: what fits on a GPU, 16 on a CPU",
    )
    vae_batch_size: int | None = Field(
        None, ge=1, le=64, description="images in one call of the VAE; null: 8 on a GPU, 1 on a CPU"
    )
    compile: Annotated[Literal["auto", "off", "full"], BeforeValidator(_off)] = Field(
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
        if needing and self.scores.clip is None:
            raise ValueError(f"{', '.join(needing)}: needs a CLIP model, see scores.clip")
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
        # On a CPU twice a full call: with several picture sizes in flight, calls are full even so.
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
        # Links stay: the images of a manifest lie beside the link to it.
        places = {
            name: str(Path(path).expanduser().absolute())
            for name, path in given.items()
            if path is not None and "://" not in path
        }
        models: dict[str, Section] = {"input": self.input.model_copy(update=places)}
        for name in ("model", "prompts", "captions"):
            section = getattr(self, name)
            # A folder that happens to be called `demo` is `./demo`.
            if section.id != EMBEDDED and Path(section.id).expanduser().is_dir():
                models[name] = section.model_copy(update={"id": _absolute(section.id)})
        if self.scores.clip is not None and Path(self.scores.clip).expanduser().is_dir():
            clip = _absolute(self.scores.clip)
            models["scores"] = self.scores.model_copy(update={"clip": clip})
        return self.model_copy(update={"output": output, **models})


def _without_secret(uri: str | None) -> str | None:
    if uri is not None and (has_credentials(uri) or is_signed(uri)):
        raise ValueError(
            "holds a password or signature, which would end up in records and logs; leave them to"
            " the environment (AWS_ACCESS_KEY_ID, GOOGLE_APPLICATION_CREDENTIALS, roles)"
        )
    return uri


def _absolute(path: str) -> str:
    return path if "://" in path else str(Path(path).expanduser().resolve())


def load_config(path: str | Path, settings: Iterable[str] = ()) -> JobConfig:
    """The job a YAML file describes, with `section.key=value` settings applied over it.

    Raises:
        ConfigError: the file cannot be read, or any keys are wrong; names them all.
    """
    where = f"config {path}"
    try:
        tree = yaml.safe_load(Path(path).read_text("utf-8"))
    except OSError as error:
        raise ConfigError(where, [f"cannot be read: {error.strerror}"]) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(where, [f"is not YAML: {' '.join(str(error).split())}"]) from None
    if not isinstance(tree, dict):
        raise ConfigError(where, ["must be a mapping of sections: model, edit, input, output, ..."])
    problems = []
    for setting in settings:
        key, equals, text = setting.partition("=")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        *sections, leaf = key.strip().split(".")
        node: Any = tree
        for section in sections:
            if isinstance(node, dict):
                if node.get(section) is None:  # absent, or a heading with nothing below it
                    node[section] = {}
                node = node[section]
        if not equals or not leaf or not isinstance(node, dict):
            problems.append(f"--set {setting}: expected section.key=value")
        else:
            node[leaf] = value
    if problems:
        raise ConfigError(where, problems)
    return _validated(JobConfig, tree, where)


def fingerprint(parts: Sequence[object]) -> str:
    """32 hex digits that change when any of the JSON-able `parts` does."""
    return hashlib.sha256(canonical_json(parts)).hexdigest()[:32]


def canonical_json(value: object) -> bytes:
    """The one way to write a JSON-able value, for hashes of it."""
    return _ENCODER.encode(value).encode()


def _validated(model: type[M], tree: Mapping[str, object], where: str) -> M:
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        problems = [_problem(model, entry) for entry in error.errors(include_url=False)]
        raise ConfigError(where, problems) from None


def _problem(model: type[BaseModel], entry: Any) -> str:
    path = [str(part) for part in entry["loc"]]
    dotted = ".".join(path)
    if entry["type"] == "extra_forbidden":
        for section in path[:-1]:
            inner = model.model_fields[section].annotation
            assert isinstance(inner, type), "sections are plain classes"
            model = inner
        close = difflib.get_close_matches(path[-1], model.model_fields, 1)
        return f"{dotted}: unknown key" + (f"; did you mean {close[0]}?" if close else "")
    if entry["type"] == "missing":
        return f"{dotted}: is required"
    message = entry["msg"].removeprefix("Value error, ")
    if entry["type"] == "value_error":
        return f"{dotted}: {message}" if dotted else message
    return f"{dotted}: {message} (got {entry['input']!r})"
