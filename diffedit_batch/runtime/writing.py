"""What an edit becomes: its PNGs in the output, and the columns of its result."""

import hashlib
from typing import TYPE_CHECKING, Any

from diffedit_batch.data.images import blur, encode_png
from diffedit_batch.data.provenance import COMPOSITE, describe
from diffedit_batch.data.storage import Storage, file_names
from diffedit_batch.errors import RowError
from diffedit_batch.models.identity import ModelIdentity
from diffedit_batch.runtime.records import error_columns
from diffedit_batch.schema import EditRequest

if TYPE_CHECKING:
    # The driver imports this module too and has no use for torch, which takes seconds to import.
    from diffedit_batch.engine.requests import EditResult


def write_result(
    result: "EditResult", storage: Storage, model: ModelIdentity, policy: str
) -> dict[str, Any]:
    """Write the pictures of a row, unless it failed; returns its result columns.

    Args:
        result: what the editor made of the row.
        storage: the output.
        model: what edited.
        policy: what becomes of flagged pictures, see `SafetyConfig`.

    Raises:
        StorageError: a picture could not be written.
    """
    if result.error is not None:
        return failed_row(result.request, result.error)
    if result.is_flagged and policy == "drop":
        refused = RowError("safety", "Flagged", "the safety checker flags the edited picture")
        return {**failed_row(result.request, refused), "is_flagged": True}
    picture = blur(result.image) if result.is_flagged and policy == "blur" else result.image
    width, height = result.size
    assert result.working_mask is not None
    working_height, working_width = result.working_mask.shape
    texts = {}
    if result.status == "edited":
        texts = describe(
            result.request, (working_width, working_height), model.name, model.revision
        )
    pictures = {"edited": encode_png(picture, texts), "mask": encode_png(result.mask)}
    if result.map is not None:
        pictures["map"] = encode_png(result.map)
    names = file_names(result.request.id, result.request.fingerprint)._asdict()
    files = {}
    for kind, data in pictures.items():
        storage.write(names[kind], data)
        files[f"{kind}_file_name"] = names[kind]
        files[f"{kind}_sha256"] = hashlib.sha256(data).hexdigest()
    return {
        "id": result.request.id,
        "status": result.status,
        **files,
        "digital_source_type": COMPOSITE if texts else "",
        "kept_seed": result.request.seed,
        "candidates": [one._asdict() for one in result.candidates] or None,
        **result.measured(),
        "is_flagged": result.is_flagged,
        "width": width,
        "height": height,
        "working_width": working_width,
        "working_height": working_height,
    }


def failed_row(request: EditRequest, error: RowError) -> dict[str, Any]:
    """The result columns of a row that failed."""
    return {"id": request.id, **error_columns(error)}
