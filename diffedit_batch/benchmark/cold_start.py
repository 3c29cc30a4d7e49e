"""How long a job takes from its process to its first batch, by phase."""

import json
import logging
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from diffedit_batch.benchmark.job import write_job
from diffedit_batch.benchmark.report import Column, Report, Table
from diffedit_batch.benchmark.timing import Spread
from diffedit_batch.config import EditConfig, JobConfig
from diffedit_batch.errors import ClusterError, ConfigError

logger = logging.getLogger(__name__)

_COLUMNS = (Column("phase", "phase"), Column("seconds", "seconds"))
_WORKER_PHASES = {
    "worker imports": "imports of the worker",
    "worker download": "download",
    "worker load": "model",
    "worker warm_up": "warm-up",
    "worker compile": "compile",
}
_NOTES = (
    "Each run is a process of its own; the model's files are in the memory of the system, as after"
    " a first run.",
    "Worker: its process and its place on Ray; its imports are torch and diffusers. Model: read and"
    " put on the device. Warm-up: every part used once, size of calls found. First batch: from then"
    " to the first committed rows, whole edits.",
)


def measure_cold_start(
    model: str,
    device: str,
    *,
    num_rows: int,
    batch_size: int | None,
    repeats: int,
    compile_mode: str = "off",
    edit: EditConfig | None = None,
) -> Report:
    """Seconds of each phase up to the first batch of a job.

    Args:
        model: one of `subject.MODELS`.
        device: `cuda` or `cpu`.
        num_rows: of the job, at the most one bundle for the first batch to be all of them.
        batch_size: `engine.batch_size`.
        repeats: processes.
        compile_mode: `engine.compile`, `off` or `full`.
        edit: parameters; None: the defaults.

    Raises:
        ConfigError: there is no such model or device, or a number is not positive.
        ClusterError: a process did not finish its job.
    """
    if repeats < 1:
        raise ConfigError("benchmark of the start", ["repeats are at least 1"])
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
        runs = []
        for number in range(repeats):
            logger.info("%s: process %d of %d", model, number + 1, repeats)
            runs.append(_run(job.writing_to(folder / f"output-{number}"), folder))
    rows = [{"phase": phase, "seconds": Spread.of(run[phase] for run in runs)} for phase in runs[0]]
    return Report(
        name="cold-start",
        title=f"From process to first batch: {model}",
        device=device,
        settings={
            "model": model,
            "num_rows": num_rows,
            "batch_size": batch_size,
            "compile": compile_mode,
            "num_inference_steps": job.config.edit.num_inference_steps,
            "repeats": repeats,
        },
        tables=[Table("Phases", _COLUMNS, rows)],
        notes=_NOTES,
    )


def _run(config: JobConfig, folder: Path) -> dict[str, float]:
    """Seconds by phase of one process."""
    config_path, moments_path = folder / "config.json", folder / "moments.json"
    config_path.write_text(config.model_dump_json(), "utf-8")
    moments_path.unlink(missing_ok=True)
    command = [sys.executable, "-m", "diffedit_batch.benchmark.first_batch"]
    started = time.time()
    done = subprocess.run(
        [*command, str(config_path), str(moments_path)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        raise ClusterError(f"the process of a cold start ended with {done.returncode}: {last}")
    at = json.loads(moments_path.read_text("utf-8"))
    start = {name: at[key] for key, name in _WORKER_PHASES.items() if key in at}
    return {
        "interpreter": at["interpreter"] - started,
        "imports of the driver": at["imports"] - at["interpreter"],
        "Ray": at["ray"] - at["imports"],
        "worker": at["loaded"] - at["ray"] - sum(start.values()),
        **start,
        "first batch": at["first_batch"] - at["loaded"],
        "total": at["first_batch"] - started,
    }
