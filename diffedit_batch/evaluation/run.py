"""One evaluation from start to end: items, judges, arms, report and figure."""

from collections.abc import Sequence
from pathlib import Path

from diffedit_batch.config import EMBEDDED, ModelConfig
from diffedit_batch.errors import ModelError
from diffedit_batch.evaluation.admission import admit
from diffedit_batch.evaluation.arms import Studio, arm_named
from diffedit_batch.evaluation.figure import draw_figure
from diffedit_batch.evaluation.items import Item, Split, knows_empty_scenes, sample_items
from diffedit_batch.evaluation.report import write_report
from diffedit_batch.evaluation.study import (
    CURVE_ARMS,
    CURVE_NUM_PER_KIND,
    NUM_PER_KIND,
    TIER_ARMS,
    Study,
    Tier,
)
from diffedit_batch.models.identity import identify

_NUM_ADMISSION_ITEMS = 200


def evaluate(
    *,
    tier: Tier,
    split: Split,
    arms: Sequence[str] | None,
    model: str,
    output: Path,
    num_per_kind: int | None = None,
) -> Path:
    """Path of the report `report.md` in `output`, with `figure.png` and a table per arm beside it.

    Args:
        tier: how many items, and which arms where `arms` is None.
        split: which scenes.
        arms: names, see `arms.ARMS`.
        model: `demo` or a pipeline folder.
        output: folder; arms measured in it before are not run again.
        num_per_kind: items of each kind, instead of the tier's number.

    Raises:
        ConfigError: an unknown arm, or results of something else in `output`.
        ModelError: no model there.
    """
    chosen = [arm_named(name) for name in dict.fromkeys(arms or TIER_ARMS[tier])]
    is_whole_full_tier = tier == "full" and arms is None
    curve = [arm_named(name) for name in CURVE_ARMS] if is_whole_full_tier else []
    config = ModelConfig(id=model)
    if model != EMBEDDED and not Path(model).is_dir():
        raise ModelError(f"--model {model!r}: no such folder (`demo` is the embedded model)")
    identity = identify(config)
    with_empty_goals = knows_empty_scenes(Path(identity.source))

    def sample(count: int) -> list[Item]:
        return sample_items(split, count, with_empty_goals=with_empty_goals)

    items = sample(num_per_kind or NUM_PER_KIND[tier])
    studio = Studio(config)
    study = Study(studio, identity.revision, output / "arms")
    # Arms of the curve have fewer items, and names of their own.
    curve_items = sample(CURVE_NUM_PER_KIND) if curve else []
    results = study.run([*((arm, items) for arm in chosen), *((arm, curve_items) for arm in curve)])
    measured, curves = results[: len(chosen)], results[len(chosen) :]
    admission = admit(studio, items[:_NUM_ADMISSION_ITEMS])
    measured_when = ", ".join(sorted({result.measured for result in results}))
    heading = (
        f"{len(items)} edits of {split} scenes (tier {tier}), model `{model}`"
        f" ({identity.revision[:8]}), measured on {measured_when}."
    )
    report = output / "report.md"
    report.write_text(write_report(measured, admission, heading), "utf-8")
    (output / "figure.png").write_bytes(draw_figure(measured, curves, items, heading))
    return report
