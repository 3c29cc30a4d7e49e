"""The measured arms as a Markdown page: every number with its interval, compared in pairs."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from diffedit_batch.demo.scenes import CHANGE_KINDS
from diffedit_batch.evaluation.admission import Admission
from diffedit_batch.evaluation.arms import REFERENCE_ARM
from diffedit_batch.evaluation.measure import MEASURES
from diffedit_batch.evaluation.statistics import Estimate, bootstrap_mean, holm, mcnemar, wilson
from diffedit_batch.evaluation.study import ArmResult

Floats = NDArray[np.floating]

RATES = ("success", "clean", "leakage")


def write_report(results: Sequence[ArmResult], admission: Admission, heading: str) -> str:
    """The page: headline table, paired comparison, success and IoU by kind, undefined values.

    Args:
        results: arms measured on the same items.
        admission: of the judges.
        heading: what was measured, when and with which code.
    """
    sections = [
        f"# Edit quality\n\n{heading}",
        _admission(admission),
        "## Arms\n\nIn brackets 95 % intervals: Wilson for rates, BCa bootstrap over items within"
        " kinds for means. A dash: undefined for this arm.\n\n" + _overview(results),
        "## Masks and pixels\n\n" + _details(results),
        "## By kind of edit\n\n" + _by_kind(results),
        "## By scene\n\nNew pairs: a colour and a shape that no training caption named together,"
        " before or after the edit.\n\n" + _by_scene(results),
    ]
    comparison = _comparison(results)
    if comparison:
        sections.append(
            "## Against the reference, item by item\n\nDifference to the reference arm; p of the"
            " exact McNemar test, by kind Holm-corrected.\n\n" + comparison
        )
    sections.append(
        "## Undefined values\n\nItems for which a measure says nothing, left out above.\n\n"
        + _undefined(results)
    )
    return "\n\n".join(sections) + "\n"


def _admission(admission: Admission) -> str:
    verdict = "admitted" if admission.is_granted else "NOT ADMITTED: read no success rate below"
    return (
        f"Judges {verdict}: success of untouched sources {admission.source:.1%}, of true edits"
        f" {admission.counterfactual:.1%}, of true edits through the VAE"
        f" {admission.round_trip:.1%}, the most an editor can hope for; the judge by rules and the"
        f" learned one agree on {admission.agreement:.1%} ({admission.num_items} items)."
    )


def _overview(results: Sequence[ArmResult]) -> str:
    header = [
        "arm", "success", "clean edits", "leakage", "mask IoU",
        "background PSNR, median (5 %)", "identical background", "evaluations",
    ]  # fmt: skip
    rows = []
    for result in results:
        kept = result.column("background_psnr")
        num_items = len(kept)
        rows.append(
            [
                result.arm.title,
                *(percent(wilson(result.column(name))) for name in RATES),
                number(mean(result, "iou")),
                f"{decibels(np.nanmedian(kept))} ({decibels(np.nanpercentile(kept, 5))})",
                percent(mean(result, "background_identical"), is_short=True),
                f"{result.num_evals / num_items:.0f}",
            ]
        )
    return table(header, rows)


def _details(results: Sequence[ArmResult]) -> str:
    header = [
        "arm", "IoU, grid", "precision", "recall", "boundary F", "average precision of the map",
        "background PSNR of mean error", "mean of PSNRs (cap 60)",
        "of the worst block, 5 %", "bystander PSNR", "seam",
        "PSNR to the true edit", "success by rules", "success by network",
    ]  # fmt: skip
    rows = []
    for result in results:
        error = float(np.nanmean(result.column("background_error")))
        rows.append(
            [
                result.arm.title,
                *(
                    number(mean(result, name), is_short=True)
                    for name in (
                        "iou_grid",
                        "precision",
                        "recall",
                        "boundary_f",
                        "average_precision",
                    )
                ),
                decibels(10 * math.log10(255**2 / error) if error else math.inf),
                decibels(mean(result, "background_psnr").value),
                decibels(float(np.nanpercentile(result.column("worst_block_psnr"), 5))),
                decibels(mean(result, "bystander_psnr").value),
                number(mean(result, "seam"), is_short=True),
                decibels(mean(result, "truth_psnr").value),
                percent(mean(result, "success_by_rules"), is_short=True),
                percent(mean(result, "success_by_network"), is_short=True),
            ]
        )
    return table(header, rows)


def _by_kind(results: Sequence[ArmResult]) -> str:
    rows = []
    for result in results:
        kinds = result.column("kind")
        cells = []
        for kind in CHANGE_KINDS:
            rate = wilson(result.column("success")[kinds == kind])
            overlap = bootstrap_mean(result.column("iou")[kinds == kind], kinds[kinds == kind])
            cells.append(f"{percent(rate)}; {number(overlap)}")
        rows.append([result.arm.title, *cells])
    header = ["success; mask IoU", *CHANGE_KINDS]
    return table(header, rows)


def _by_scene(results: Sequence[ArmResult]) -> str:
    rows = []
    for result in results:
        success = result.column("success")
        num_objects, is_new = result.column("num_objects"), result.column("has_held_out_pair")
        groups = (num_objects == 1, num_objects == 2, ~is_new, is_new)
        rows.append([result.arm.title, *(percent(wilson(success[group])) for group in groups)])
    return table(["success", "one object", "two objects", "known pairs", "new pairs"], rows)


def _comparison(results: Sequence[ArmResult]) -> str:
    reference = next((one for one in results if one.arm.name == REFERENCE_ARM), None)
    if reference is None:
        return ""
    kinds = reference.column("kind")
    rows = []
    for result in results:
        if result is reference:
            continue
        ours, theirs = result.column("success"), reference.column("success")
        by_kind = holm(
            [mcnemar(ours[kinds == kind], theirs[kinds == kind]) for kind in CHANGE_KINDS]
        )
        rows.append(
            [
                result.arm.title,
                *(
                    percent(
                        bootstrap_mean(result.column(name) - reference.column(name), kinds.tolist())
                    )
                    for name in ("success", "clean")
                ),
                f"{mcnemar(ours, theirs):.2g}",
                ", ".join(f"{p:.2g}" for p in by_kind),
                *(
                    number(
                        bootstrap_mean(result.column(name) - reference.column(name), kinds.tolist())
                    )
                    for name in ("iou", "background_psnr")
                ),
            ]
        )
    header = [
        "arm", "success", "clean edits", "p", f"p of {', '.join(CHANGE_KINDS)}", "mask IoU",
        "background PSNR, dB",
    ]  # fmt: skip
    return table(header, rows)


def _undefined(results: Sequence[ArmResult]) -> str:
    names = [
        name for name in MEASURES if any(np.isnan(result.column(name)).any() for result in results)
    ]
    rows = [
        [
            result.arm.title,
            *(str(int(np.isnan(result.column(name)).sum())) for name in names),
        ]
        for result in results
    ]
    return table([f"of {len(results[0].table)} items", *names], rows)


def mean(result: ArmResult, name: str) -> Estimate:
    """Mean of a measure over the items that define it."""
    return bootstrap_mean(result.column(name), result.column("kind").tolist())


def percent(estimate: Estimate, *, is_short: bool = False) -> str:
    """A rate as text, with its interval unless short."""
    if not estimate.num_items:
        return "-"
    if is_short:
        return f"{estimate.value:.1%}"
    return f"{estimate.value:.1%} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def number(estimate: Estimate, *, is_short: bool = False) -> str:
    """A mean as text, with its interval unless short."""
    if not estimate.num_items:
        return "-"
    if is_short:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def decibels(value: float) -> str:
    """A PSNR as text."""
    if math.isnan(value):
        return "-"
    return "identical" if math.isinf(value) else f"{value:.1f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
