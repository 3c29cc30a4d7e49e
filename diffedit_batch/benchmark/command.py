"""The command line of the benchmarks: parses, measures, writes, prints."""

import argparse
import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from diffedit_batch.cli import exit_code_of

if TYPE_CHECKING:
    from diffedit_batch.benchmark.report import Report

logger = logging.getLogger(__name__)

# What is measured is imported where it is: `--help` need not wait for torch, nor the engine for
# Ray.


def main(argv: Sequence[str] | None, description: str | None) -> int:
    """Measure and print; returns the exit code."""
    options = parser(description).parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    command: Callable[[argparse.Namespace], int] = options.command
    return exit_code_of(lambda: command(options))


def parser(description: str | None) -> argparse.ArgumentParser:
    """All commands with their arguments."""
    root = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = root.add_subparsers(required=True, metavar="WHAT")

    def add(
        name: str, command: Callable[[argparse.Namespace], int], text: str
    ) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=text, description=text)
        one.set_defaults(command=command)
        return one

    everything = add("all", _all, "all of the below but `plan`, each in a process of its own")
    everything.add_argument("--device", default="cuda", help="cuda or cpu (cuda)")
    everything.add_argument("--output", type=Path, default=Path("out/benchmark"))

    engine = add("engine", _engine, "calls and edits of the engine alone; needs no Ray")
    baselines = add("baselines", _baselines, "edits beside those of diffusers")
    job = add("end-to-end", _end_to_end, "files in, files out, through Ray")
    start = add("cold-start", _cold_start, "from process to first batch, by phase")
    for one in (engine, baselines, job, start):
        one.add_argument("--model", default="sd21-512", help="see docs/speed.md (sd21-512)")
        one.add_argument("--device", default="cuda", help="cuda or cpu (cuda)")
    engine.add_argument(
        "--sizes", type=_numbers, help="evaluations in a call (1,2,...,128; on a CPU 1,4,16)"
    )
    engine.add_argument("--edits", type=int, help="in one measurement (64; on a CPU 4)")
    baselines.add_argument("--baselines", type=_names, help="(all that the device can do)")
    baselines.add_argument("--edits", type=int, help="in one measurement of ours (64; on a CPU 16)")
    for one in (engine, baselines):
        one.add_argument("--compile", type=_names, help="(off,full; on a CPU off)")
    baselines.add_argument(
        "--batch-size", type=int, default=16, help="pictures that are batched by hand (16)"
    )
    for one in (job, start):
        one.add_argument("--batch-size", type=int, help="of the engine (what it chooses)")
        one.add_argument("--compile", default="off", help="off or full (off)")
    start.add_argument("--rows", type=int, default=16, help="in the first batch (16)")
    job.add_argument("--rows", type=int, default=256, help="of the manifest (256)")

    scheduler = add("scheduler", _scheduler, "workers that sleep")
    scheduler.add_argument("--workers", type=_numbers, default=[1, 4, 16, 64], help="(1,4,16,64)")
    scheduler.add_argument("--groups", type=int, default=10_000, help="pictures (10000)")
    scheduler.add_argument("--rows-per-group", type=int, default=4, help="edits of each (4)")
    scheduler.add_argument("--group-seconds", type=float, default=0.02, help="(0.02)")
    driver = add("driver", _driver, "what the driver spends on a row")
    driver.add_argument("--rows", type=int, default=10_000, help="of the manifest (10000)")
    driver.add_argument("--rows-per-image", type=int, default=4, help="edits of each (4)")
    for one in (engine, baselines, job, start, scheduler, driver):
        one.add_argument("--repeats", type=int, default=3, help="measurements of each (3)")
        one.add_argument("--output", type=Path, help="folder (out/benchmark/WHAT-MODEL)")

    plan = add("plan", _plan, "planning of a rerun that has little to do")
    plan.add_argument("--rows", type=int, default=1_000_000, help="of the manifest (1000000)")
    plan.add_argument("--done", type=int, default=999_000, help="of them committed (999000)")
    plan.add_argument("--images", type=int, default=1_000, help="files they name (1000)")
    plan.add_argument("--folder", type=Path, help="where the temporary folder is made")
    plan.add_argument("--json", action="store_true", help="print JSON instead of Markdown")
    return root


def _engine(options: argparse.Namespace) -> int:
    from diffedit_batch.benchmark.engine import measure_engine

    is_gpu = options.device == "cuda"
    report = measure_engine(
        options.model,
        options.device,
        sizes=options.sizes or ([2**n for n in range(8)] if is_gpu else [1, 4, 16]),
        compile_modes=options.compile or (["off", "full"] if is_gpu else ["off"]),
        num_edits=options.edits or (64 if is_gpu else 4),
        repeats=options.repeats,
    )
    return _write(report, options.output or _folder("engine", options.model))


def _baselines(options: argparse.Namespace) -> int:
    from diffedit_batch.benchmark.baselines import default_baselines, measure_baselines

    is_gpu = options.device == "cuda"
    report = measure_baselines(
        options.model,
        options.device,
        baselines=options.baselines or default_baselines(options.device),
        compile_modes=options.compile or (["off", "full"] if is_gpu else ["off"]),
        batch_size=options.batch_size,
        num_edits=options.edits or (64 if is_gpu else 16),
        repeats=options.repeats,
    )
    return _write(report, options.output or _folder("baselines", options.model))


def _end_to_end(options: argparse.Namespace) -> int:
    from diffedit_batch.benchmark.end_to_end import measure_end_to_end

    report = measure_end_to_end(
        options.model,
        options.device,
        num_rows=options.rows,
        batch_size=options.batch_size,
        repeats=options.repeats,
        compile_mode=options.compile,
    )
    return _write(report, options.output or _folder("end-to-end", options.model))


def _cold_start(options: argparse.Namespace) -> int:
    from diffedit_batch.benchmark.cold_start import measure_cold_start

    report = measure_cold_start(
        options.model,
        options.device,
        num_rows=options.rows,
        batch_size=options.batch_size,
        repeats=options.repeats,
        compile_mode=options.compile,
    )
    return _write(report, options.output or _folder("cold-start", options.model))


def _scheduler(options: argparse.Namespace) -> int:
    from diffedit_batch.benchmark.scheduler import measure_scheduler

    report = measure_scheduler(
        worker_counts=options.workers,
        num_groups=options.groups,
        rows_per_group=options.rows_per_group,
        group_s=options.group_seconds,
        repeats=options.repeats,
    )
    return _write(report, options.output or _folder("scheduler"))


def _driver(options: argparse.Namespace) -> int:
    from diffedit_batch.benchmark.driver import measure_driver

    report = measure_driver(
        num_rows=options.rows, rows_per_image=options.rows_per_image, repeats=options.repeats
    )
    return _write(report, options.output or _folder("driver"))


def _all(options: argparse.Namespace) -> int:
    """Every benchmark that suits the device; one that fails does not keep the others from it."""
    from diffedit_batch.benchmark.timing import check_device

    check_device(options.device)
    codes = []
    for name, *arguments in everything(options.device):
        output = options.output / name
        command = [sys.executable, sys.argv[0], *arguments, "--output", str(output)]
        logger.info("%s", " ".join(command[1:]))
        codes.append(subprocess.run(command, check=False).returncode)
    return next((code for code in codes if code), 0)


def everything(device: str) -> list[tuple[str, ...]]:
    """Name and arguments of every run of `all`."""
    is_gpu = device == "cuda"
    models = ("sd21-512", "sd21-768", "sd15") if is_gpu else ("demo",)
    modes = ("off", "full") if is_gpu else ("off",)
    runs: list[tuple[str, ...]] = []
    for model in models:
        where = ("--model", model, "--device", device)
        # The embedded model is so small that it takes many to keep even a CPU busy.
        sizes, edits = ((), ()) if is_gpu else (("--sizes", "1,4,16,32,64"), ("--edits", "64"))
        runs.append((f"engine-{model}", "engine", *where, *sizes, *edits))
        runs.append((f"baselines-{model}", "baselines", *where, *edits))
        # Enough for start and end not to weigh.
        rows = ("--rows", "512") if is_gpu else ("--rows", "96")
        job = (*where, "--compile", modes[-1], *rows)
        runs.append((f"end-to-end-{model}", "end-to-end", *job))
    for mode in modes:
        start = ("--model", models[0], "--device", device, "--compile", mode)
        runs.append((f"cold-start-{mode}", "cold-start", *start))
    long_groups = ("--workers", "16", "--groups", "1600", "--group-seconds", "1")
    return [
        *runs,
        ("scheduler", "scheduler", *long_groups),
        ("scheduler-short-groups", "scheduler", "--repeats", "1"),
        ("driver", "driver"),
    ]


def _plan(options: argparse.Namespace) -> int:
    from diffedit_batch.benchmark.planning import measure_planning

    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        cost = measure_planning(
            Path(folder),
            num_rows=options.rows,
            num_done=options.done,
            num_images=options.images,
        )
    print(json.dumps(asdict(cost), indent=2) if options.json else cost.as_markdown())
    return 0


def _folder(*names: str) -> Path:
    return Path("out/benchmark") / "-".join(names)


def _write(report: "Report", folder: Path) -> int:
    page = report.write(folder)
    print(page.read_text("utf-8"))
    print(f"report: {page}")
    return 0


def _names(text: str) -> list[str]:
    return text.split(",")


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]
