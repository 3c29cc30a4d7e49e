"""The whole job: files in, files out, through Ray; beside the engine alone and a plain loop."""

import logging
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffedit_batch.benchmark.job import Job, write_job
from diffedit_batch.benchmark.report import Column, Report, Table
from diffedit_batch.benchmark.timing import Spread, free_memory, seconds_of
from diffedit_batch.config import EditConfig, JobConfig
from diffedit_batch.data.images import encode_png, read_picture
from diffedit_batch.engine.editor import DiffEditor
from diffedit_batch.engine.requests import ImageEdits
from diffedit_batch.errors import ConfigError
from diffedit_batch.evaluation.items import Item
from diffedit_batch.evaluation.reference import ReferencePipeline
from diffedit_batch.models.identity import identify
from diffedit_batch.runtime.driver import run_job
from diffedit_batch.runtime.records import RunState
from diffedit_batch.schema import EditRequest, ImageRef

logger = logging.getLogger(__name__)

_COLUMNS = (
    Column("what", ""),
    Column("edits_per_s", "edits/s"),
    Column("seconds", "seconds"),
    Column("of_engine", "of the engine alone", is_share=True),
    Column("of_loop", "times the loop"),
    Column("driver_ms_per_row", "driver's processor time a row, ms"),
    Column("problem", ""),
)
_PHASE_COLUMNS = (Column("phase", "phase"), Column("seconds", "seconds"))
_NOTES = (
    "Engine alone: the same rows through `DiffEditor` in one process, pictures in memory, warm.",
    "Once loaded: from the moment at which the worker has its model to the last results. Whole:"
    " from the call of the job to its end, with the start of Ray and of the worker, and its model.",
    "Reference loop (embedded model only): read, edit, write, one row after the other, in this"
    " process; whole: with its model.",
    "Phases: of the last run, as its record has them; read, edit and write overlap.",
)


def measure_end_to_end(
    model: str,
    device: str,
    *,
    num_rows: int,
    batch_size: int | None,
    repeats: int,
    compile_mode: str = "off",
    edit: EditConfig | None = None,
) -> Report:
    """A job of rendered scenes from manifest to results, again and again, and what to compare with.

    Args:
        model: one of `subject.MODELS`.
        device: `cuda` or `cpu`; one worker.
        num_rows: edits, each of a picture of its own.
        batch_size: `engine.batch_size`.
        repeats: measurements of each.
        compile_mode: `engine.compile`, `off` or `full`.
        edit: parameters; None: the defaults.

    Raises:
        ConfigError: there is no such model or device, or a number is not positive.
        DiffEditError: the job did not finish.
    """
    if repeats < 1:
        raise ConfigError("benchmark of the job", ["repeats are at least 1"])
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        folder = Path(name)
        job = write_job(
            folder,
            model,
            device,
            num_rows=num_rows,
            batch_size=batch_size,
            compile_mode=compile_mode,
            edit=edit,
        )
        logger.info("%s: the engine alone", model)
        engine = _time_engine(job, device, repeats)
        free_memory()
        runs = []
        for number in range(repeats):
            logger.info("%s: job %d of %d", model, number + 1, repeats)
            runs.append(_time_job(job.writing_to(folder / f"output-{number}")))
        logger.info("%s: the plain loop", model)
        loop = _time_loop(job, device, folder / "loop") if model == "demo" else None
    rows = _rows(num_rows, engine, runs, loop)
    phases = [{"phase": phase, "seconds": s} for phase, s in runs[-1]["phases"].items()]
    return Report(
        name="end-to-end",
        title=f"Whole job: {model}",
        device=device,
        settings={
            "model": model,
            "resolution": job.side,
            "num_rows": num_rows,
            "batch_size": batch_size,
            "compile": compile_mode,
            "preset": job.config.edit.preset,
            "num_inference_steps": job.config.edit.num_inference_steps,
            "repeats": repeats,
        },
        tables=[
            Table("Edits", _COLUMNS, rows),
            Table("Phases of the job", _PHASE_COLUMNS, phases),
        ],
        notes=_NOTES,
    )


def _time_engine(job: Job, device: str, repeats: int) -> Spread:
    """Seconds of all rows in one process, without files."""
    config = job.config
    editor = DiffEditor.load(config.model, device=device, batch_size=config.engine.batch_size)
    if config.engine.compile == "full":
        editor.compile()

    def edits(item: Item) -> ImageEdits:
        source, target = (item.source_prompt,), (item.target_prompt,)
        request = EditRequest(item.id, source, target, edit=config.edit, seed=item.seed)
        return ImageEdits(job.picture(item), [request])

    everything = [edits(item) for item in job.items]

    def use() -> None:
        for result in editor.edit(everything):
            if result.error is not None:
                raise result.error

    editor.edit(everything[: editor.batch_size])
    return Spread.of(seconds_of(use, device) for _ in range(repeats))


def _time_job(config: JobConfig) -> dict[str, Any]:
    """One run of the job: seconds, rate, and how it went."""
    moments: list[tuple[int, int, float, float]] = []

    def note(state: RunState) -> None:
        moments.append(
            (len(state.workers), state.counts.total(), time.perf_counter(), time.process_time())
        )

    started = time.perf_counter()
    state = run_job(config, on_progress=note)
    seconds = time.perf_counter() - started
    _, _, loaded_at, worked = next(one for one in moments if one[0])
    num_rows = state.counts.total()
    _, _, came_at, has_worked = next(one for one in moments if one[1] == num_rows)
    return {
        "seconds": seconds,
        "seconds_loaded": came_at - loaded_at,
        "driver_ms_per_row": 1e3 * (has_worked - worked) / num_rows,
        "counts": dict(state.counts),
        "phases": dict(state.seconds),
        "counters": state.counters.as_dict(),
    }


def _time_loop(job: Job, device: str, output: Path) -> dict[str, float]:
    """Seconds of the reference in a plain loop over the same files, with its model and without."""
    output.mkdir()
    mine = {
        name: getattr(job.config.edit, name) for name in ("num_inference_steps", "inpaint_strength")
    }
    edit = EditConfig(preset="diffusers").override(mine).resolved()
    limits = {
        "max_bytes": job.config.input.max_bytes,
        "max_pixels": job.config.input.max_pixels,
    }
    started = time.perf_counter()
    reference = ReferencePipeline(identify(job.config.model).source, device)
    loaded = time.perf_counter()
    for item in job.items:
        # It edits the picture it renders itself, which is the same.
        read_picture(ImageRef(str(job.path(item))), **limits)
        picture, mask = reference.edit(item, edit, job.side)
        (output / f"{item.id}.png").write_bytes(encode_png(picture))
        (output / f"{item.id}-mask.png").write_bytes(encode_png(mask))
    ended = time.perf_counter()
    return {"reference loop, once loaded": ended - loaded, "reference loop, whole": ended - started}


def _rows(
    num_rows: int,
    engine: Spread,
    runs: Sequence[dict[str, Any]],
    loop: Mapping[str, float] | None,
) -> list[dict[str, Any]]:
    """The rows of the table, with their ratios to the engine and to the loop."""
    whole = Spread.of(run["seconds"] for run in runs)
    loaded = Spread.of(run["seconds_loaded"] for run in runs)
    rows: list[dict[str, Any]] = [
        {"what": "engine alone", "seconds": engine, "edits_per_s": engine.rate(num_rows)},
        {
            "what": "job, once loaded",
            "seconds": loaded,
            "edits_per_s": loaded.rate(num_rows),
            "driver_ms_per_row": Spread.of(run["driver_ms_per_row"] for run in runs),
        },
        {
            "what": "job, whole",
            "seconds": whole,
            "edits_per_s": whole.rate(num_rows),
            "statuses": runs[-1]["counts"],
            "counters": runs[-1]["counters"],
            "problem": _failures(runs[-1]["counts"]),
        },
    ]
    for name, seconds in (loop or {}).items():
        spread = Spread.of([seconds])
        rows.append({"what": name, "seconds": spread, "edits_per_s": spread.rate(num_rows)})
    rates = {row["what"]: row["edits_per_s"].median for row in rows}
    for row in rows:
        row["of_engine"] = rates[row["what"]] / rates["engine alone"]
        if loop is not None:
            part = "whole" if row["what"].endswith("whole") else "once loaded"
            row["of_loop"] = rates[row["what"]] / rates[f"reference loop, {part}"]
    return rows


def _failures(counts: Mapping[str, int]) -> str | None:
    return f"{counts['failed']} rows failed" if counts.get("failed") else None
