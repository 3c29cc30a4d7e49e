import time

import numpy as np
import pytest
import torch
from small_edits import box, picture, request

from diffedit_batch.core.acts import Edit
from diffedit_batch.core.mask import MaskPair
from diffedit_batch.engine.preparing import PreparedEdits
from diffedit_batch.engine.requests import ImageEdits
from diffedit_batch.engine.rows import LeavingRow, Row

MASK = MaskPair.from_pixels(torch.from_numpy(box(64, 64)), 8)


def row() -> Row:
    edits = ImageEdits(picture(), [request()])
    prepared = PreparedEdits(edits, torch.zeros(3, 64, 64), {}, {}, {})
    return Row(request(), prepared, time.perf_counter(), num_truncated_prompts=2)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("strength\n  too low"), "InvalidParameter"),
        (FloatingPointError("strength too low"), "NonFiniteResult"),
        (torch.OutOfMemoryError("strength too low"), "OutOfMemory"),
    ],
    ids=["parameter", "numbers", "memory"],
)
def test_a_row_that_failed_says_why_in_one_line(error: Exception, kind: str) -> None:
    result = row().failed(error)
    assert result.status == "failed"
    assert result.error is not None
    assert (result.error.stage, result.error.kind) == ("edit", kind)
    assert str(result.error) == "strength too low"
    assert result.seconds > 0


def test_an_edit_that_left_is_what_the_device_had() -> None:
    difference = torch.rand(64, 64, generator=torch.Generator().manual_seed(0))
    image = torch.full((3, 64, 64), 1.0)
    result = LeavingRow(row(), Edit(torch.zeros(4, 8, 8), MASK, difference), image).result()
    assert result.status == "edited"
    assert result.working is not None and (result.working == 255).all()
    assert result.working.shape == (64, 64, 3)
    assert result.working_mask is not None and result.difference is not None
    assert np.array_equal(result.working_mask, box(64, 64))
    assert np.array_equal(result.difference, difference.numpy())
    assert np.array_equal(result.original, picture())
    assert result.num_truncated_prompts == 2


def test_without_a_decoded_picture_nothing_changed() -> None:
    result = LeavingRow(row(), Edit(None, MASK, None), None).result()
    assert (result.status, result.difference) == ("unchanged", None)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_one_pixel_that_is_no_number_spoils_the_picture(value: float) -> None:
    image = torch.zeros(3, 64, 64)
    image[1, 2, 3] = value
    leaving = LeavingRow(row(), Edit(torch.zeros(4, 8, 8), MASK, None), image)
    assert leaving.is_here, "on a CPU at once"
    with pytest.raises(FloatingPointError, match="not finite"):
        leaving.result()
