"""One row of numbers for one edited item: what the per-item tables hold."""

import numpy as np
import pyarrow as pa
from PIL import Image

from diffedit_batch.demo.scenes import has_held_out_pair
from diffedit_batch.engine.pixels import Picture
from diffedit_batch.evaluation import metrics
from diffedit_batch.evaluation.arms import Arm, Outcome
from diffedit_batch.evaluation.items import Item
from diffedit_batch.evaluation.judges import judge, judge_anywhere
from diffedit_batch.evaluation.metrics import UNDEFINED

CLEAN_PSNR = 30.0
"""Decibels of background that a clean edit keeps at least."""
GRID_FACTOR = 8
"""Pixels per cell of the grid on which masks are also compared."""

MEASURES = {
    "success": "to both judges the picture shows what was asked for",
    "success_by_rules": "to the judge without learning",
    "success_by_network": "to the learned judge",
    "bystander_intact": "the other object of a local edit kept colour and shape",
    "leakage": "the other object of a local edit did not",
    "clean": "success, background >= 30 dB, no leakage",
    "iou": "of a found mask with the true one, in pixels",
    "iou_grid": "the same in cells of 8 px, covered by half",
    "precision": "share of the found mask that is true",
    "recall": "share of the true mask that was found",
    "area_ratio": "found area over true area",
    "boundary_f": "F score of the outlines, 2 px",
    "average_precision": "area under the precision-recall curve of the map",
    "background_error": "mean squared error farther than 4 px from the true mask",
    "background_psnr": "the same in dB, at most 60",
    "worst_block_psnr": "the same of the worst block of 8 x 8 pixels",
    "background_identical": "share of those pixels equal to the bit",
    "bystander_psnr": "dB within the other object, at most 60",
    "seam": "gradient along the mask's outline over that of the true edit",
    "truth_psnr": "dB to the true edit within the true mask (recolour, remove, background)",
}
"""Every measure of an item; NaN where it is undefined, 0 or 1 where it says yes or no."""

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("num_objects", pa.int64(), nullable=False),
        pa.field("has_held_out_pair", pa.bool_(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("source_prompt", pa.string(), nullable=False),
        pa.field("target_prompt", pa.string(), nullable=False),
        *(pa.field(name, pa.float64(), nullable=False) for name in MEASURES),
    ]
)


def describe(item: Item) -> dict[str, object]:
    """The columns that name an item."""
    return {
        "id": item.id,
        "kind": item.kind,
        "num_objects": len(item.scene.objects),
        "has_held_out_pair": has_held_out_pair(item.scene) or has_held_out_pair(item.goal),
        "seed": item.seed,
        "source_prompt": item.source_prompt,
        "target_prompt": item.target_prompt,
    }


def measure(arm: Arm, item: Item, outcome: Outcome) -> dict[str, float]:
    """All measures of one outcome, by name."""
    if arm.start == "noise":
        # A picture drawn from nothing but text knows no places.
        verdict = judge_anywhere(item.goal, outcome.picture)
    else:
        verdict = judge(item, outcome.picture)
    background = metrics.background_of(item.mask)
    error = metrics.mean_squared_error(outcome.picture, item.source, background)
    kept = metrics.psnr(error)
    intact = UNDEFINED if verdict.is_bystander_intact is None else verdict.is_bystander_intact
    is_clean = verdict.is_success and not kept < CLEAN_PSNR and intact != 0
    values = {
        "success": verdict.is_success,
        "success_by_rules": verdict.by_rules,
        "success_by_network": verdict.by_network,
        "bystander_intact": intact,
        "leakage": 1 - intact,
        "clean": is_clean,
        "background_error": error,
        "background_psnr": min(kept, metrics.PSNR_CAP),
        "worst_block_psnr": min(
            metrics.psnr(metrics.worst_block_error(outcome.picture, item.source, background)),
            metrics.PSNR_CAP,
        ),
        "background_identical": metrics.identical_share(outcome.picture, item.source, background),
        "bystander_psnr": _bystander_psnr(item, outcome.picture),
        "truth_psnr": _truth_psnr(item, outcome.picture),
        **_measure_mask(arm, item, outcome),
    }
    return {name: float(values[name]) for name in MEASURES}


def _measure_mask(arm: Arm, item: Item, outcome: Outcome) -> dict[str, float]:
    """What can be said of a mask; its likeness to the truth only where it was found, not given."""
    mask, truth = outcome.mask, item.mask
    found = dict.fromkeys(
        ("iou", "iou_grid", "precision", "recall", "area_ratio", "boundary_f"), UNDEFINED
    )
    if mask is not None and arm.mask == "found":
        found = {
            "iou": metrics.iou(mask, truth),
            "iou_grid": metrics.iou(
                metrics.to_grid(mask, GRID_FACTOR), metrics.to_grid(truth, GRID_FACTOR)
            ),
            "precision": metrics.precision(mask, truth),
            "recall": metrics.recall(mask, truth),
            "area_ratio": mask.mean() / truth.mean(),
            "boundary_f": metrics.boundary_f(mask, truth),
        }
    curve = UNDEFINED
    if outcome.difference is not None:
        height, width = truth.shape
        scores = Image.fromarray(outcome.difference).resize(
            (width, height), Image.Resampling.NEAREST
        )
        curve = metrics.average_precision(np.asarray(scores), truth)
    seam = UNDEFINED
    if mask is not None:
        seam = metrics.seam_error(outcome.picture, item.counterfactual, mask)
    return {**found, "average_precision": curve, "seam": seam}


def _bystander_psnr(item: Item, picture: Picture) -> float:
    supports = item.bystander_supports
    if not supports:
        return UNDEFINED
    error = metrics.mean_squared_error(picture, item.source, np.logical_or.reduce(supports))
    return min(metrics.psnr(error), metrics.PSNR_CAP)


def _truth_psnr(item: Item, picture: Picture) -> float:
    # A new shape may come in any rotation, which no pixel comparison forgives.
    if item.kind not in ("recolour", "remove", "background"):
        return UNDEFINED
    error = metrics.mean_squared_error(picture, item.counterfactual, item.mask)
    return min(metrics.psnr(error), metrics.PSNR_CAP)
