import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jobs_on_disk import picture
from PIL import Image
from small_edits import box, request
from small_edits import picture as noise

from diffedit_batch.data.images import blur
from diffedit_batch.data.provenance import COMPOSITE
from diffedit_batch.data.storage import Storage
from diffedit_batch.engine.requests import EditResult
from diffedit_batch.errors import RowError
from diffedit_batch.models.identity import ModelIdentity
from diffedit_batch.runtime.writing import write_result

MODEL = ModelIdentity("owner/name", "r1", "owner/name")
ERROR = RowError("edit", "OutOfMemory", "does not fit")


def result(**more: Any) -> EditResult:
    """An edit of half the working size of its picture, with a map."""
    parts = {
        "working": noise(32, 16, seed=1),
        "working_mask": box(32, 16),
        "difference": box(32, 16).astype(np.float32),
    }
    return EditResult(request(feather=0), noise(64, 32), **{**parts, **more})


def write(folder: Path, one: EditResult, policy: str = "keep") -> dict[str, Any]:
    return write_result(one, Storage(str(folder)), MODEL, policy)


def test_an_edit_is_three_pictures_and_what_is_known_of_them(tmp_path: Path) -> None:
    edit = result()
    assert edit.map is not None
    columns = write(tmp_path, edit)
    assert (columns["id"], columns["status"]) == ("0", "edited")
    assert (columns["width"], columns["height"]) == (64, 32)
    assert (columns["working_width"], columns["working_height"]) == (32, 16)
    for kind, expected in (("edited", edit.image), ("mask", edit.mask * 255), ("map", edit.map)):
        name = columns[f"{kind}_file_name"]
        assert np.array_equal(picture(tmp_path, name), expected)
        data = (tmp_path / name).read_bytes()
        assert hashlib.sha256(data).hexdigest() == columns[f"{kind}_sha256"]
    assert len(list(tmp_path.rglob("*.png"))) == 3
    assert columns["digital_source_type"] == COMPOSITE
    assert columns.items() >= edit.measured().items()


def test_a_picture_that_nothing_changed_is_written_without_a_word_of_a_model(
    tmp_path: Path,
) -> None:
    columns = write(tmp_path, result(working=None, difference=None))
    assert (columns["status"], columns["digital_source_type"]) == ("unchanged", "")
    with Image.open(tmp_path / columns["edited_file_name"]) as image:
        assert image.info == {}
        assert np.array_equal(np.array(image), noise(64, 32))
    assert "map_file_name" not in columns


def test_a_row_that_failed_leaves_no_file(tmp_path: Path) -> None:
    columns = write(tmp_path, EditResult(request(), noise(), error=ERROR))
    assert columns == {
        "id": "0",
        "status": "failed",
        "error_stage": "edit",
        "error_type": "OutOfMemory",
        "error_message": str(ERROR),
    }
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("policy", ["keep", "blur", "drop"])
def test_policies_are_for_flagged_pictures_alone(tmp_path: Path, policy: str) -> None:
    for is_flagged in (False, None):
        edit = result(is_flagged=is_flagged)
        columns = write(tmp_path, edit, policy)
        assert (columns["status"], columns["is_flagged"]) == ("edited", is_flagged)
        assert np.array_equal(picture(tmp_path, columns["edited_file_name"]), edit.image)


def test_a_flagged_picture_is_kept_blurred_or_dropped(tmp_path: Path) -> None:
    flagged = result(is_flagged=True)
    for policy, expected in (("keep", flagged.image), ("blur", blur(flagged.image))):
        columns = write(tmp_path / policy, flagged, policy)
        assert (columns["status"], columns["is_flagged"]) == ("edited", True)
        assert columns["background_psnr"] == flagged.background_psnr
        written = picture(tmp_path / policy, columns["edited_file_name"])
        assert np.array_equal(written, expected)
    columns = write(tmp_path / "drop", flagged, "drop")
    assert (columns["status"], columns["is_flagged"]) == ("failed", True)
    assert (columns["error_stage"], columns["error_type"]) == ("safety", "Flagged")
    assert not (tmp_path / "drop").exists()
