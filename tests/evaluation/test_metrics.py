import math

import numpy as np
import pytest

from diffedit_batch.evaluation import metrics
from diffedit_batch.evaluation.metrics import Mask, Picture


def box(top: int, left: int, height: int, width: int) -> Mask:
    mask = np.zeros((64, 64), bool)
    mask[top : top + height, left : left + width] = True
    return mask


def grey(value: int) -> Picture:
    return np.full((64, 64, 3), value, np.uint8)


TRUTH = box(16, 16, 20, 20)
EMPTY, FULL = box(0, 0, 0, 0), box(0, 0, 64, 64)


def test_overlap_of_two_boxes() -> None:
    shifted = box(16, 26, 20, 20)  # half of each lies in the other
    assert metrics.iou(shifted, TRUTH) == pytest.approx(1 / 3)
    assert metrics.precision(shifted, TRUTH) == metrics.recall(shifted, TRUTH) == 0.5
    inner = box(16, 16, 10, 10)
    assert metrics.precision(inner, TRUTH) == 1
    assert metrics.recall(inner, TRUTH) == metrics.iou(inner, TRUTH) == 0.25
    assert metrics.iou(EMPTY, TRUTH) == 0


def test_what_cannot_be_said_is_undefined() -> None:
    assert math.isnan(metrics.iou(EMPTY, EMPTY))
    assert math.isnan(metrics.precision(EMPTY, TRUTH))
    assert math.isnan(metrics.recall(TRUTH, EMPTY))
    assert math.isnan(metrics.boundary_f(FULL, EMPTY))
    assert math.isnan(metrics.average_precision(np.zeros((64, 64)), EMPTY))
    assert math.isnan(metrics.mean_squared_error(grey(0), grey(9), EMPTY))
    assert math.isnan(metrics.identical_share(grey(0), grey(0), EMPTY))
    assert math.isnan(metrics.seam_error(grey(0), grey(0), FULL))


def test_a_cell_counts_when_half_of_it_is_covered() -> None:
    mask = np.zeros((16, 16), bool)
    mask[:, :4] = True  # half of the left cells
    mask[8:, 8:11] = True  # three eighths of the last one
    assert metrics.to_grid(mask, 8).tolist() == [[True, False], [True, False]]


@pytest.mark.parametrize("shift", [0, 1, 2])
def test_outlines_within_two_pixels_are_equal(shift: int) -> None:
    assert metrics.boundary_f(box(16 + shift, 16, 20, 20), TRUTH) == 1


def test_outlines_far_apart_share_nothing() -> None:
    assert metrics.boundary_f(box(46, 46, 10, 10), TRUTH) == 0
    assert metrics.boundary_f(FULL, TRUTH) == metrics.boundary_f(EMPTY, TRUTH) == 0


def test_outlines_of_a_box_moved_by_four_pixels() -> None:
    # An outline of 20 x 20 has 76 pixels. Of each long side of the moved one, 18 are within reach
    # of the truth's (16 on it, 2 beyond its end), and 2 at each end of the side that lies inside.
    moved = box(16, 20, 20, 20)
    assert metrics.boundary_f(moved, TRUTH) == pytest.approx((2 * 18 + 2 * 2) / 76)


def test_average_precision_by_hand() -> None:
    truth = np.array([[True, False, True, False]])
    # Ranked: hit (1/1), miss, hit (2/3), miss.
    scores = np.array([[0.9, 0.8, 0.7, 0.1]])
    assert metrics.average_precision(scores, truth) == pytest.approx((1 + 2 / 3) / 2)
    assert metrics.average_precision(truth.astype(float), truth) == 1
    # All alike: nothing but the share of the truth.
    assert metrics.average_precision(np.zeros((1, 4)), truth) == 0.5


def test_the_background_keeps_its_distance() -> None:
    background = metrics.background_of(TRUTH)
    assert background[11, 20]
    assert not background[12, 20]
    assert not (background & TRUTH).any()
    assert metrics.background_of(EMPTY).all()


def test_psnr_of_a_known_error() -> None:
    background = metrics.background_of(TRUTH)
    edited = grey(100)
    edited[TRUTH] = 255  # what happens in the mask is no concern of the background
    assert metrics.mean_squared_error(edited, grey(100), background) == 0
    assert metrics.psnr(0) == math.inf
    error = metrics.mean_squared_error(grey(110), grey(100), background)
    assert error == 100
    assert metrics.psnr(error) == pytest.approx(20 * math.log10(25.5))


def test_the_worst_block_is_the_one_with_the_stain() -> None:
    stained = grey(100)
    stained[:4, :8] = 110  # half of one block
    assert metrics.worst_block_error(stained, grey(100), FULL) == 50
    assert metrics.worst_block_error(stained, grey(100), box(8, 0, 64, 64)) == 0
    assert math.isnan(metrics.worst_block_error(stained, grey(100), box(1, 1, 14, 14) & ~FULL))


def test_identical_pixels_are_counted_whole() -> None:
    edited = grey(100)
    edited[:32, :, 0] += 1  # one channel is enough to differ
    assert metrics.identical_share(edited, grey(100), FULL) == 0.5


def test_a_step_along_the_outline_is_a_seam() -> None:
    half = box(0, 0, 64, 32)
    edited = grey(100)
    edited[:, :32] = 160
    # A step of 60 is a gradient of 30 in the two columns beside it; the outline is column 31, and
    # 3 pixels to each side are 7 columns.
    assert metrics.seam_error(edited, grey(100), half) == pytest.approx(60 / 7)
    assert metrics.seam_error(grey(100), edited, half) == pytest.approx(-60 / 7)
    assert metrics.seam_error(edited, edited, half) == 0
