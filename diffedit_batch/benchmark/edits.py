"""Whole edits through `DiffEditor`, timed and counted."""

from collections.abc import Mapping
from typing import Any

from diffedit_batch.benchmark.calls import problem_of
from diffedit_batch.benchmark.ceilings import Ceilings
from diffedit_batch.benchmark.subject import Subject, done, make_edits, with_mask_area
from diffedit_batch.benchmark.timing import Spread, peak_memory_gb, reset_peak_memory, seconds_of
from diffedit_batch.config import EditConfig
from diffedit_batch.engine.counters import Counters
from diffedit_batch.engine.editor import DiffEditor
from diffedit_batch.errors import RowError
from diffedit_batch.models.flops import PartFlops


def time_edits(
    subject: Subject,
    editor: DiffEditor,
    call: Mapping[str, Any],
    edit: EditConfig,
    num_edits: int,
    edits_per_image: int,
    ceilings: Ceilings,
    repeats: int,
) -> dict[str, Any]:
    """What edits cost in calls that were timed before, as a row; where they fail, a row that says
    why.
    """
    row: dict[str, Any] = {
        "call_size": editor.batch_size,
        "edits_per_image": edits_per_image,
    }
    reset_peak_memory(subject.device)
    num_images = max(1, num_edits // edits_per_image)
    try:
        edits = with_mask_area(editor, make_edits(subject, num_images, edits_per_image, edit))
        results = done(editor.edit(edits))  # warms up every size of call that there will be
        before = editor.counters
        seconds = Spread.of(
            seconds_of(lambda: done(editor.edit(edits)), subject.device) for _ in range(repeats)
        )
    except RowError as error:
        return row | {"problem": problem_of(error)}
    work = editor.counters - before
    num_done = num_images * edits_per_image
    needed = _flops(work, subject.flops) / repeats
    padding = work.padding_evals * subject.flops.unet_eval / repeats
    num_evals = (work.unet_evals + work.padding_evals) / repeats
    calls_s = num_evals * call["ms_per_evaluation"].median / 1e3
    of_ceiling = seconds.rate(1 / (ceilings.matmul_tflops.median * 1e12))
    return row | {
        "num_edits": num_done,
        "edits_per_s": seconds.rate(num_done),
        "images_per_s": seconds.rate(num_images),
        "evaluations_per_edit": work.unet_evals / repeats / num_done,
        "padding": work.padding_evals / (work.unet_evals + work.padding_evals),
        "algorithmic_mfu": of_ceiling.scaled(needed),
        "executed_mfu": of_ceiling.scaled(needed + padding),
        "outside_calls": 1 - calls_s / seconds.median,
        "mask_area": sum(result.coverage for result in results) / num_done,
        "peak_memory_gb": peak_memory_gb(subject.device),
        "counters": {name: count / repeats for name, count in work.as_dict().items()},
        "problem": _problem(work),
    }


def _problem(work: Counters) -> str | None:
    """What the engine had to do that was not meant to be measured."""
    if work.batch_halvings:
        return "calls of this size did not fit beside the rest, and were halved"
    if work.full_precision_retries:
        return f"{work.full_precision_retries} edits were redone in float32"
    return None


def _flops(work: Counters, flops: PartFlops) -> float:
    return flops.of(
        unet_evals=work.unet_evals,
        vae_encodes=work.vae_encodes,
        vae_decodes=work.vae_decodes,
        text_encodes=work.text_encodes,
    )
