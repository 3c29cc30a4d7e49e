"""The engine alone: arrays in, arrays out; no files, no Ray.

Two things are timed. *Calls*: one network call, as the batcher makes it, at every size. *Edits*:
pictures through `DiffEditor`, at the size whose calls were fastest.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from diffedit_batch.benchmark.calls import Call, time_call
from diffedit_batch.benchmark.ceilings import Ceilings, measure_ceilings
from diffedit_batch.benchmark.curve import draw_curves
from diffedit_batch.benchmark.edits import time_edits
from diffedit_batch.benchmark.kernels import KINDS, profile_kernels
from diffedit_batch.benchmark.report import Column, Report, Table
from diffedit_batch.benchmark.subject import MASK_AREA, Subject, load_subject, make_editor
from diffedit_batch.benchmark.timing import Spread, free_memory
from diffedit_batch.config import EditConfig, Preset
from diffedit_batch.errors import ConfigError

logger = logging.getLogger(__name__)

_PRESET: Preset = "paper"
_EDITS_PER_IMAGE = (1, 4)
_NUM_CALLS_WATCHED = 10
_NOTES = (
    "Weights are random (the embedded model's are its own), of the true shapes, scaled so that"
    " noise estimates and latents are of order 1; pictures are noise.",
    f"Masks are searched for, and cut where they cover {MASK_AREA:.0%} of their picture.",
    "MFU: operations a second over the matmul ceiling above. Algorithmic: operations that the edits"
    " need, shared where edits share a picture; executed: padding too. Elementwise operations count"
    " as none.",
    "Peak memory: of tensors on a GPU, of the whole process so far on a CPU.",
    "Outside calls: time of the edits that as many full network calls would not take: pictures in"
    " and out of the VAE, and the engine's own work.",
    f"Kernels: of {_NUM_CALLS_WATCHED} network calls, over the time of as many unwatched; their"
    " names are in report.json.",
)
_CEILING_COLUMNS = (
    Column("matmul_size", "matmul, side"),
    Column("matmul_tflops", "matmul, TFLOP/s"),
    Column("copy_gb_per_s", "copy within memory, GB/s"),
)
_MODE = (Column("compile", "compile"), Column("call_size", "evaluations a call"))
_MEMORY = (Column("peak_memory_gb", "peak memory, GB"), Column("problem", ""))
_CALL_COLUMNS = (
    *_MODE,
    Column("ms_per_evaluation", "ms an evaluation"),
    Column("tflops", "TFLOP/s"),
    Column("mfu", "of the matmul ceiling", is_share=True),
    Column("first_call_s", "first call, compiled where it is to be, s"),
    *_MEMORY,
)
_EDIT_COLUMNS = (
    *_MODE,
    Column("edits_per_image", "edits an image"),
    Column("num_edits", "edits"),
    Column("edits_per_s", "edits/s"),
    Column("images_per_s", "images/s"),
    Column("evaluations_per_edit", "evaluations an edit"),
    Column("padding", "padding", is_share=True),
    Column("algorithmic_mfu", "algorithmic MFU", is_share=True),
    Column("executed_mfu", "executed MFU", is_share=True),
    Column("outside_calls", "outside calls", is_share=True),
    Column("mask_area", "mask area", is_share=True),
    *_MEMORY,
)
_KERNEL_COLUMNS = (*_MODE, *(Column(kind, kind, is_share=True) for kind in (*KINDS, "idle")))


def measure_engine(
    model: str,
    device: str,
    *,
    sizes: Sequence[int],
    compile_modes: Sequence[str],
    num_edits: int,
    repeats: int,
    num_inference_steps: int = 50,
    matmul_size: int | None = None,
) -> Report:
    """Calls of every size, whole edits, kinds of kernels and ceilings of one model.

    Args:
        model: one of `subject.MODELS`.
        device: `cuda` or `cpu`.
        sizes: network evaluations in a call.
        compile_modes: values of `engine.compile`.
        num_edits: edits in one measurement.
        repeats: measurements of each.
        num_inference_steps: of every edit.
        matmul_size: of the ceiling; None: what suits the device.

    Raises:
        ConfigError: there is no such model, device or mode.
    """
    if min(sizes) < 1 or num_edits < max(_EDITS_PER_IMAGE) or repeats < 1:
        raise ConfigError(
            "benchmark of the engine",
            [f"sizes and repeats are at least 1, edits at least {max(_EDITS_PER_IMAGE)}"],
        )
    edit = EditConfig(preset=_PRESET, num_inference_steps=num_inference_steps).resolved()
    ceilings: Ceilings | None = None
    calls: list[dict[str, Any]] = []
    edits: list[dict[str, Any]] = []
    kernels: list[dict[str, Any]] = []
    for mode in compile_modes:
        subject = load_subject(model, device, compile_mode=mode)
        if ceilings is None:
            ceilings = measure_ceilings(
                device, subject.components.dtype, repeats, matmul_size=matmul_size
            )
        of_mode = []
        for size in sizes:
            logger.info("%s, compile %s: calls of %d", model, mode, size)
            of_mode.append({"compile": mode, **time_call(subject, size, ceilings, repeats)})
            free_memory()
        calls += of_mode
        good = [row for row in of_mode if row["problem"] is None]
        if good:
            fastest = min(good, key=lambda row: row["ms_per_evaluation"].median)
            editor = make_editor(subject, fastest["call_size"])
            for edits_per_image in _EDITS_PER_IMAGE:
                logger.info("%s, compile %s: %d edits an image", model, mode, edits_per_image)
                row = time_edits(
                    subject, editor, fastest, edit, num_edits, edits_per_image, ceilings, repeats
                )
                edits.append({"compile": mode, **row})
            shares = _share_kernels(subject, fastest["call_size"])
            kernels.append({"compile": mode, **shares})
        free_memory()
    assert ceilings is not None
    return Report(
        name="engine",
        title=f"Engine alone: {model}",
        device=device,
        settings={
            "model": model,
            "resolution": subject.components.resolution,
            "dtype": str(subject.components.dtype).removeprefix("torch."),
            "preset": _PRESET,
            "num_inference_steps": num_inference_steps,
            "repeats": repeats,
        },
        tables=[
            Table("Ceilings", _CEILING_COLUMNS, [vars(ceilings)]),
            Table("Network calls", _CALL_COLUMNS, calls),
            Table("Edits", _EDIT_COLUMNS, edits),
            Table("Time of network calls by kind of kernel", _KERNEL_COLUMNS, kernels),
        ],
        notes=_NOTES,
        figure=draw_curves(
            {f"compile: {mode}": _curve(calls, mode) for mode in compile_modes},
            title=f"{model}: ms of a network evaluation over evaluations in a call",
        ),
    )


def _share_kernels(subject: Subject, size: int) -> dict[str, Any]:
    """Where the time of calls of a size goes, as a row; an editor with that size has been made."""
    call = Call(subject, size)
    call()

    def call_often() -> None:
        for _ in range(_NUM_CALLS_WATCHED):
            call()

    shares = profile_kernels(call_often, subject.device)
    return {
        "call_size": size,
        **shares.shares,
        "seconds": shares.seconds,
        "longest_kernels": shares.longest,
    }


def _curve(rows: Sequence[Mapping[str, Any]], mode: str) -> list[tuple[float, Spread]]:
    return [
        (row["call_size"], row["ms_per_evaluation"])
        for row in rows
        if row["compile"] == mode and row["problem"] is None
    ]
