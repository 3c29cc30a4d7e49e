"""The search behind the default preset: masks first, then edits, on validation scenes only."""

import dataclasses
import itertools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from diffedit_batch.config import EditConfig, ModelConfig
from diffedit_batch.demo.scenes import CHANGE_KINDS
from diffedit_batch.evaluation.arms import Arm, Studio
from diffedit_batch.evaluation.items import sample_items
from diffedit_batch.evaluation.mask_search import (
    MapRecipe,
    Rule,
    Score,
    estimate_differences,
    search,
)
from diffedit_batch.evaluation.report import mean, number, percent, table
from diffedit_batch.evaluation.statistics import wilson
from diffedit_batch.evaluation.study import ArmResult, Study
from diffedit_batch.models.identity import identify

logger = logging.getLogger(__name__)

LEVELS = (
    *((0.3,), (0.4,), (0.5,), (0.6,), (0.7,), (0.8,)),
    *((0.4, 0.6), (0.3, 0.5, 0.7), (0.4, 0.5, 0.6, 0.7, 0.8)),
)
"""Noise strengths over which draws are spread."""
RULES = (
    *(Rule("minmax", value) for value in (0.15, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)),
    *(Rule("mean_ratio", value) for value in (1.5, 2.0, 2.5, 3.0, 4.0)),
    Rule("otsu"),
    Rule("mixture"),
    *(Rule("area_capped", value) for value in (0.2, 0.4, 0.95)),
)
DEFAULT = EditConfig().resolved()
EDITS: dict[str, Sequence[object]] = {
    "guidance_scale": (2.0, 3.5, 5.0, 7.5),
    "inpaint_strength": (0.6, 0.7, 0.8, 0.9),
    "invert_with": ("empty", "caption"),
    "negative_from": ("source_prompt", "empty"),
    "inversion_timestep": ("current", "next"),
    "mask_encode_strength": (0.5, 0.6, 0.7),
    "mask_threshold": (0.3, 0.35, 0.4, 0.45),
    "mask_guide_radius": (0, 8, 16, 24),
    "num_maps_per_mask": (5, 10),
    "num_inference_steps": (25, 50),
    "feather": (0, 4, 8),
}
"""What is tried of each parameter, one at a time from the default."""
_NUM_BEST = 10


def tune(model: str, output: Path, num_per_kind: int) -> Path:
    """Path of `tuning.md` in `output`: both searches as tables.

    Args:
        model: `demo` or a pipeline folder.
        output: folder; edits that were measured in it before are not measured again.
        num_per_kind: validation items of each kind.
    """
    config = ModelConfig(id=model)
    studio = Studio(config)
    revision = identify(config).revision
    items = sample_items("validation", num_per_kind, with_empty_goals=True)
    output.mkdir(parents=True, exist_ok=True)

    def report(done: int) -> None:
        logger.info("noise estimates: %d of %d items", done, len(items))

    components = studio.components
    scores = search(
        estimate_differences(components, items, report),
        items,
        list(_recipes()),
        RULES,
    )
    pq.write_table(
        pa.Table.from_pylist([dataclasses.asdict(score) for score in scores]),
        output / "masks.parquet",
    )
    study = Study(studio, revision, output / "arms")
    arms = [Arm("default", "default", DEFAULT), *_variants()]
    results = study.run([(arm, items) for arm in arms])
    page = output / "tuning.md"
    heading = (
        f"{len(items)} validation edits, model `{model}` ({revision[:8]}), measured on"
        f" {results[0].measured}."
    )
    page.write_text(write_page(scores, results, heading), "utf-8")
    return page


def write_page(scores: Sequence[Score], results: Sequence[ArmResult], heading: str) -> str:
    """The page of both searches.

    Args:
        scores: of all masks, the best first.
        results: of all edits, the default first.
        heading: what was measured and when.
    """
    parts: dict[str, Callable[[Score], str]] = {
        "rule": lambda score: str(score.rule),
        "noise strengths": lambda score: ", ".join(map(str, score.recipe.strengths)),
        "draws": lambda score: (
            f"{score.recipe.num_draws}{' antithetic' if score.recipe.is_antithetic else ''}"
        ),
        "average of": lambda score: "sizes" if score.recipe.averages_sizes else "differences",
        "smoothing": lambda score: f"{score.recipe.smoothing} cells",
        "guided by the picture": lambda score: (
            f"within {score.recipe.guide_radius} px" if score.recipe.guide_radius else "no"
        ),
        "threshold on": lambda score: "upsampled map" if score.upsampled else "latent grid",
    }
    sections = [
        f"# Tuning of the default preset\n\n{heading}",
        f"## Masks\n\n{len(scores)} combinations, mean IoU with the true masks. The best:\n\n"
        + _mask_table(scores[:_NUM_BEST], parts, ""),
    ]
    for name, describe in parts.items():
        best: dict[str, Score] = {}
        for score in scores:
            best.setdefault(describe(score), score)
        sections.append(
            f"The best with each choice of {name}:\n\n"
            + _mask_table(list(best.values()), parts, name)
        )
    sections.append(
        "## Edits\n\nOne parameter at a time, all else as in the default. In brackets 95 %"
        " intervals.\n\n" + _edit_table(results)
    )
    return "\n\n".join(sections) + "\n"


def _recipes() -> list[MapRecipe]:
    shapes = [
        MapRecipe(levels, averages_sizes=averages_sizes, smoothing=smoothing)
        for levels, averages_sizes, smoothing in itertools.product(LEVELS, (True, False), (1, 3))
    ]
    draws = [
        MapRecipe(levels, num_draws, is_antithetic)
        for levels, (num_draws, is_antithetic) in itertools.product(
            LEVELS, ((1, False), (3, False), (5, False), (10, True))
        )
        if num_draws >= len(levels)
    ]
    guides = [
        MapRecipe(levels, guide_radius=radius)
        for levels, radius in itertools.product(LEVELS, (8, 16, 24, 32))
    ]
    return [*shapes, *draws, *guides]


def _variants() -> list[Arm]:
    return [
        Arm(f"{name}={value}", f"{name} {value}", DEFAULT.override({name: value}))
        for name, values in EDITS.items()
        for value in values
        if getattr(DEFAULT, name) != value
    ]


def _mask_table(
    scores: Sequence[Score], parts: dict[str, Callable[[Score], str]], first: str
) -> str:
    columns = sorted(parts, key=lambda name: name != first)
    rows = [
        [
            *(parts[name](score) for name in columns),
            f"{score.iou:.3f}",
            f"{score.recall:.3f}",
            *(f"{score.iou_by_kind[kind]:.3f}" for kind in CHANGE_KINDS),
        ]
        for score in scores
    ]
    return table([*columns, "IoU", "recall", *CHANGE_KINDS], rows)


def _edit_table(results: Sequence[ArmResult]) -> str:
    rows = []
    for result in results:
        kinds = result.column("kind")
        success = result.column("success")
        rows.append(
            [
                result.arm.title,
                percent(wilson(success)),
                percent(wilson(result.column("clean"))),
                *(f"{success[kinds == kind].mean():.0%}" for kind in CHANGE_KINDS),
                number(mean(result, "iou"), is_short=True),
                f"{np.nanmedian(result.column('background_psnr')):.1f}",
                f"{result.num_evals / len(kinds):.0f}",
            ]
        )
    header = [
        "", "success", "clean edits", *CHANGE_KINDS, "mask IoU", "background PSNR, median",
        "evaluations",
    ]  # fmt: skip
    return table(header, rows)
