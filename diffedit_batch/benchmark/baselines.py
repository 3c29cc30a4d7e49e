"""Ours beside what people would use instead: same weights, numbers, size, steps and guidance."""

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from diffedit_batch.benchmark.calls import problem_of
from diffedit_batch.benchmark.guide import Guide
from diffedit_batch.benchmark.parity import compare
from diffedit_batch.benchmark.report import Column, Report, Table
from diffedit_batch.benchmark.subject import (
    Subject,
    done,
    load_subject,
    make_editor,
    make_edits,
    with_mask_area,
)
from diffedit_batch.benchmark.timing import (
    Spread,
    free_memory,
    peak_memory_gb,
    reset_peak_memory,
    seconds_of,
)
from diffedit_batch.config import EditConfig, Preset
from diffedit_batch.engine.warm_up import find_batch_size
from diffedit_batch.errors import ConfigError, ModelError, RowError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Baseline:
    """One way of editing.

    Attributes:
        title: what the table calls it.
        preset: whose DiffEdit it is.
        is_ours: else it is the reference.
        is_offloaded: whether parts of the model wait on the CPU.
        is_batched: whether the reference edits several pictures at once.
    """

    title: str
    preset: Preset = "diffusers"
    is_ours: bool = False
    is_offloaded: bool = False
    is_batched: bool = False


BASELINES = {
    "guide": Baseline("diffusers, the guide's script: CPU offload", is_offloaded=True),
    "resident": Baseline("diffusers, the same without offload"),
    "batched": Baseline("diffusers, the same, batched by hand", is_batched=True),
    "ours": Baseline("ours, preset `diffusers`", is_ours=True),
    "ours-paper": Baseline("ours, preset `paper`", preset="paper", is_ours=True),
}
_COLUMNS = (
    Column("title", ""),
    Column("compile", "compile"),
    Column("pictures_at_once", "pictures at once"),
    Column("call_size", "evaluations a call"),
    Column("edits_per_s", "edits/s"),
    Column("seconds_per_edit", "seconds an edit"),
    Column("speed", "times the first row"),
    Column("evaluations_per_edit", "evaluations an edit"),
    Column("mask_cells", "mask, of all cells", is_share=True),
    Column("differing_cells", "mask cells that differ", is_share=True),
    Column("latents_error", "latents, relative error"),
    Column("peak_memory_gb", "peak memory, GB"),
    Column("problem", ""),
)
# The reference's own ratio, 3, leaves nothing of the maps of random weights, which have little
# contrast; at 2 the cut is at the mean.
_RATIO = 2.0
_NOTES = (
    "All in the same process, on the very same modules (the offloaded ones are copies), UNet, VAE"
    " and text encoder in one dtype; no progress bars, no safety checker.",
    "Mask cells and latents: of the same latents, noise and texts, against ours with preset"
    " `diffusers`, one picture at a time; latents under equal masks. In the rows of ours the other"
    " side is the reference without offload, one picture at a time.",
    "Batched by hand, the reference cuts each mask by the mean over the whole batch: its masks"
    " depend on what is beside them, and differ.",
    "Preset `paper` is another algorithm (no guidance in the inversion, blends of equal noise"
    " levels): its row has no parity, and its masks cover a quarter of each picture.",
)


def measure_baselines(
    model: str,
    device: str,
    *,
    baselines: Sequence[str],
    compile_modes: Sequence[str],
    batch_size: int,
    num_edits: int,
    repeats: int,
    num_inference_steps: int = 50,
) -> Report:
    """The chosen ways of editing, each with its speed and its parity.

    Args:
        model: one of `subject.MODELS`.
        device: `cuda` or `cpu`.
        baselines: names in `BASELINES`.
        compile_modes: values of `engine.compile`, for ours.
        batch_size: pictures that the reference edits at once where it is batched. Calls of ours are
            as large as a job has them.
        num_edits: edits in one measurement of ours; the reference does no more than one call.
        repeats: measurements of each.
        num_inference_steps: of every edit.

    Raises:
        ConfigError: there is no such model, device or baseline.
    """
    check_baselines(baselines, device)
    if min(batch_size, num_edits, repeats) < 1:
        raise ConfigError("benchmark of the baselines", ["all numbers must be at least 1"])
    steps = {"num_inference_steps": num_inference_steps}
    reference = EditConfig(preset="diffusers", mask_thresholding_ratio=_RATIO).override(steps)
    bench = _Bench(reference.resolved(), batch_size, num_edits, repeats)
    rows: list[dict[str, Any]] = []
    for name in baselines:
        baseline = BASELINES[name]
        for mode in compile_modes if baseline.is_ours else ["off"]:
            logger.info("%s: %s, compile %s", model, name, mode)
            subject = load_subject(model, device, compile_mode=mode, is_vae_half=True)
            row: dict[str, Any] = {"name": name, "title": baseline.title, "compile": mode}
            rows.append(row | bench.measure(subject, baseline))
            dtype = str(subject.components.dtype).removeprefix("torch.")
            resolution = subject.components.resolution
            del subject
            free_memory()
    first = next((row["edits_per_s"] for row in rows if "edits_per_s" in row), None)
    for row in rows:
        if first is not None and "edits_per_s" in row:
            row["speed"] = row["edits_per_s"].median / first.median
    return Report(
        name="baselines",
        title=f"Ours and what there is: {model}",
        device=device,
        settings={
            "model": model,
            "resolution": resolution,
            "dtype": dtype,
            "num_inference_steps": num_inference_steps,
            "guidance_scale": bench.edit.guidance_scale,
            "batch_size": batch_size,
            "num_edits": num_edits,
            "repeats": repeats,
        },
        tables=[Table("One edit an image", _COLUMNS, rows)],
        notes=_NOTES,
    )


def default_baselines(device: str) -> list[str]:
    """All that the device can do."""
    return [name for name, b in BASELINES.items() if device == "cuda" or not b.is_offloaded]


def check_baselines(names: Sequence[str], device: str) -> None:
    """Raises ConfigError where a baseline is not there, or not on this device."""
    problems = [
        f"{name!r} is none of {', '.join(BASELINES)}" for name in names if name not in BASELINES
    ]
    problems += [
        f"{name!r} moves the model between CPU and GPU: there is no such thing on {device}"
        for name in names
        if name in BASELINES and BASELINES[name].is_offloaded and device != "cuda"
    ]
    if problems:
        raise ConfigError("baselines", problems)


@dataclass(frozen=True)
class _Bench:
    """What all rows have in common; `edit` is of preset `diffusers`."""

    edit: EditConfig
    batch_size: int
    num_edits: int
    repeats: int

    def measure(self, subject: Subject, baseline: Baseline) -> dict[str, Any]:
        """Speed and parity of one way of editing, as a row; what does not fit says so."""
        reset_peak_memory(subject.device)
        try:
            if baseline.is_ours:
                speed = self._time_ours(subject, baseline)
            else:
                speed = self._time_reference(subject, baseline)
            parity = {} if baseline.preset != "diffusers" else self._compare(subject, baseline)
            return speed | parity
        except (torch.OutOfMemoryError, ModelError, RowError) as error:
            return {"problem": problem_of(error)}

    def _time_ours(self, subject: Subject, baseline: Baseline) -> dict[str, Any]:
        editor = make_editor(subject, find_batch_size(subject.components))
        if baseline.preset == "diffusers":
            edits = make_edits(subject, self.num_edits, 1, self.edit)
        else:
            steps = {"num_inference_steps": self.edit.num_inference_steps}
            edit = EditConfig(preset=baseline.preset).override(steps).resolved()
            edits = with_mask_area(editor, make_edits(subject, self.num_edits, 1, edit))
        done(editor.edit(edits))
        before = editor.counters.unet_evals
        row = self._time(subject, lambda: done(editor.edit(edits)), self.num_edits)
        num_evals = editor.counters.unet_evals - before
        return row | {
            "pictures_at_once": self.num_edits,
            "call_size": editor.batch_size,
            "evaluations_per_edit": num_evals / self.repeats / self.num_edits,
        }

    def _time_reference(self, subject: Subject, baseline: Baseline) -> dict[str, Any]:
        count = self.batch_size if baseline.is_batched else 1
        edits = make_edits(subject, count, 1, self.edit)
        guide = Guide(subject.pipeline, is_offloaded=baseline.is_offloaded)
        guide_edit = functools.partial(
            guide.edit,
            [one.picture for one in edits],
            [one.requests[0].source_prompt[0] for one in edits],
            [one.requests[0].target_prompt[0] for one in edits],
            self.edit,
        )
        guide_edit()
        before = guide.num_evals
        row = self._time(subject, guide_edit, count)
        num_evals = guide.num_evals - before
        guide.close()
        return row | {
            "pictures_at_once": count,
            "evaluations_per_edit": num_evals / self.repeats / count,
        }

    def _time(self, subject: Subject, use: Callable[[], Any], count: int) -> dict[str, Any]:
        seconds = Spread.of(seconds_of(use, subject.device) for _ in range(self.repeats))
        return {
            "edits_per_s": seconds.rate(count),
            "seconds_per_edit": seconds.scaled(1 / count),
            "peak_memory_gb": peak_memory_gb(subject.device),
        }

    def _compare(self, subject: Subject, baseline: Baseline) -> dict[str, Any]:
        guide = Guide(subject.pipeline, is_offloaded=baseline.is_offloaded)
        count = self.batch_size if baseline.is_batched else 1
        parity = compare(subject, guide, self.edit, count, self.batch_size)
        guide.close()
        return vars(parity)
