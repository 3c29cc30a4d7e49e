"""`diffedit-batch`: parses, calls, prints; no logic of its own.

Exit codes: 0 finished or nothing to do, 1 unexpected error, 2 bad usage, config, manifest or model,
3 more failures than allowed, 4 workers could not be had or kept (resumable), 5 storage, 6 output
held by another run, 75 interrupted on request (resumable).
"""

import argparse
import json
import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from diffedit_batch import __version__
from diffedit_batch.config import JobConfig, load_config
from diffedit_batch.errors import DiffEditError, InterruptedRunError, OutputHeldError
from diffedit_batch.flags import add_selection, selection_of

if TYPE_CHECKING:
    from diffedit_batch.runtime.plan import Plan
    from diffedit_batch.runtime.records import RunState
    from diffedit_batch.runtime.selection import Selection


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    command: Callable[[argparse.Namespace], int] = arguments.command
    return exit_code_of(lambda: command(arguments))


def exit_code_of(command: Callable[[], int]) -> int:
    """What a command returns, or the exit code of the error it ends with, printed in one
    message.
    """
    try:
        return command()
    except DiffEditError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        return InterruptedRunError.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="diffedit-batch",
        description="Edit image datasets with DiffEdit: Parquet in, PNGs and Parquet out.",
        epilog="Exit codes: 0 finished, 1 unexpected, 2 bad input, 3 too many failed rows,"
        " 4 no workers, 5 storage, 6 output held by another run, 75 interrupted. After 4, 5, 6 and"
        " 75 the same command continues.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(
        name: str, command: Callable[[argparse.Namespace], int], what: str
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=what, description=what)
        sub.set_defaults(command=command)
        return sub

    run = add("run", _run, "Run a job; run again, it continues with what is missing or changed.")
    plan = add("plan", _plan, "Check a job and count its work, without starting a model.")
    prepare = add(
        "prepare",
        _prepare,
        "Generate prompts and captions only, to be read and corrected before the run.",
    )
    for sub in (run, plan, prepare):
        sub.add_argument("config", help="YAML file, e.g. configs/sd21.yaml")
        sub.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            dest="settings",
            help="override a key, e.g. --set edit.guidance_scale=5 (repeatable)",
        )
        add_selection(sub, can_prune=sub is not prepare)
    run.add_argument(
        "--if-locked",
        choices=("fail", "skip"),
        default="fail",
        help="where another run holds the output: exit with code 6, or do nothing and exit with 0"
        " (fail)",
    )
    plan.add_argument("--json", action="store_true", help="print JSON")
    status = add("status", _status, "Show what an output folder holds.")
    status.add_argument("output", help="output folder of a job")
    status.add_argument("--json", action="store_true", help="print JSON")
    report = add("report", _report, "Write a gallery of an output, to be opened in a browser.")
    report.add_argument("output", help="output folder of a job")
    report.add_argument("--to", type=Path, metavar="FOLDER", help="where to (OUTPUT/report)")
    report.add_argument(
        "--image-root",
        metavar="FOLDER",
        help="where the source images are (where the runs found them)",
    )
    demo = add("demo", _demo, "Render scenes, edit them with the embedded model, draw a picture.")
    demo.add_argument("folder", nargs="?", default="out/demo", type=Path, help="(out/demo)")
    return parser


def _run(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config, arguments.settings)
    try:
        _execute(config, selection_of(arguments))
    except OutputHeldError as error:
        if arguments.if_locked == "fail":
            raise
        print(f"skipped: {error}")
    return 0


def _prepare(arguments: argparse.Namespace) -> int:
    from diffedit_batch.runtime.driver import prepare_job

    config = load_config(arguments.config, arguments.settings)
    with _progress() as show:
        state = prepare_job(config, selection=selection_of(arguments), on_progress=show)
    _print_generated(state)
    for kind, number in state.failures.most_common():
        print(f"  failed at {kind}: {number}")
    print(f"prompts:  {config.output.uri}/prompts.parquet, one row per concept")
    print(f"captions: {config.output.uri}/captions.parquet, one row per image")
    print(
        "To correct one, change its text and leave the other columns as they are; for a concept"
        " that failed, add a row with concept and prompts. `diffedit-batch run` then uses it."
    )
    return 0


def _print_generated(state: "RunState") -> None:
    counters = state.counters
    if counters.prompt_generations or counters.captions:
        print(
            f"generated: prompts for {counters.prompt_generations} concepts,"
            f" captions of {counters.captions} images"
        )


def _execute(config: JobConfig, selection: "Selection") -> None:
    from diffedit_batch.runtime.driver import run_job

    with _progress() as show:
        state = run_job(config, selection=selection, on_progress=show)
    print(_verdicts(state))
    if not state.counts:
        print(f"nothing to do: all {state.num_rows} rows are done in {config.output.uri}")
        if state.num_failed_before:
            print(f"  {state.num_failed_before} of them failed (see --retry-failed)")
        return
    counts, counters = state.counts, state.counters
    print(
        f"results of this run: {counts['edited']} edited, {counts['unchanged']} unchanged,"
        f" {counts['failed']} failed"
    )
    for kind, number in state.failures.most_common():
        print(f"  failed at {kind}: {number}")
    _print_filtered(state.num_filtered, dict(state.filter_reasons.most_common()))
    if state.num_flagged:
        print(f"  {state.num_flagged} rows are flagged by the safety checker")
    _print_generated(state)
    if state.num_truncated_rows:
        print(f"  {state.num_truncated_rows} rows have a prompt cut at the text encoder's limit")
    print(
        f"{state.seconds['total']:.1f} s; {counters.unet_evals} network evaluations in"
        f" {counters.unet_calls} calls, {counters.inversions} inversions,"
        f" {counters.vae_encodes} images encoded"
    )
    print(f"results: {config.output.uri}/results  record: runs/{state.run_id}.json")


def _print_filtered(num_rows: int, reasons: dict[str, int]) -> None:
    if num_rows:
        print(f"  {num_rows} rows do not pass the filter")
    for reason, number in reasons.items():
        print(f"    {reason}: {number}")


def _verdicts(counted: "RunState | Plan") -> str:
    """What becomes of the rows of a manifest."""
    from diffedit_batch.runtime.selection import VERDICTS

    numbers = ", ".join(f"{counted.selected[verdict]} {verdict}" for verdict in VERDICTS)
    return f"{counted.num_rows} rows: {numbers}"


@contextmanager
def _progress() -> Iterator[Callable[["RunState"], None]]:
    """What shows the progress of a job, whose driver stops in an orderly way while workers run;
    before and after that, signals are like Ctrl-C.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGUSR1, signal.default_int_handler)
    progress = _Progress()
    try:
        yield progress.show
    finally:
        progress.close()


class _Progress:
    """A line that is rewritten on a terminal, and a line every ten seconds elsewhere."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._started = self._shown = time.monotonic()

    def show(self, state: "RunState") -> None:
        now = time.monotonic()
        if not self._is_terminal and now - self._shown < 10:
            return
        self._shown = now
        num_here = state.counts.total()
        if not state.num_workers and not num_here:
            self._started = now  # what a model takes to load says nothing about the rows
        elapsed = max(now - self._started, 1e-9)
        left = state.num_rows - state.num_done
        eta = f", {left * elapsed / num_here:.0f} s left" if num_here else ""
        workers = f"workers: {state.num_workers}" if state.num_workers else "workers are starting"
        line = state.phase or (
            f"{state.num_done}/{state.num_rows} rows, {num_here / elapsed:.2f} rows/s,"
            f" {state.counts['failed']} failed, {workers}{eta}"
        )
        end = "" if self._is_terminal else "\n"
        print(
            f"\r\033[K{line}" if self._is_terminal else line, end=end, file=sys.stderr, flush=True
        )

    def close(self) -> None:
        if self._is_terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def _plan(arguments: argparse.Namespace) -> int:
    from diffedit_batch.runtime.plan import as_json, plan_job

    config = load_config(arguments.config, arguments.settings)
    plan = plan_job(config, selection=selection_of(arguments))
    if arguments.json:
        print(as_json(plan))
        return 0
    print(_verdicts(plan))
    print(
        f"to edit: {plan.num_to_edit} ({plan.num_images} images); {plan.num_refused} would fail at"
        " once"
    )
    for kind, number in plan.refusals.most_common():
        print(f"  {kind}: {number}, e.g. {plan.examples[kind]}")
    if plan.num_concepts or plan.num_captions:
        print(
            f"to generate first: prompts for {plan.num_concepts} concepts, captions of"
            f" {plan.num_captions} images"
        )
    print(f"{plan.unet_evals} network evaluations")
    hours = plan.worker_hours()
    if hours is None:
        print("time: unknown until a first run, e.g. with --limit 32")
    else:
        print(f"time: about {hours:.2f} worker-hours at the speed of the last run")
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from diffedit_batch.runtime.status import read_status

    status = read_status(arguments.output)
    if arguments.json:
        print(json.dumps(status, indent=2))
        return 0
    counts = ", ".join(f"{number} {name}" for name, number in status["counts"].items())
    print(f"{status['state']}: {counts}")
    _print_filtered(status["num_filtered"], status["filter_reasons"])
    if status["last_run"]:
        print(f"last run: {status['last_run']['run_id']}, {status['last_run']['outcome']}")
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from diffedit_batch.report.build import build_report

    is_terminal = sys.stderr.isatty()

    def show(num_done: int, num_rows: int) -> None:
        if is_terminal and (num_done % 100 == 0 or num_done == num_rows):
            print(f"\r\033[K{num_done}/{num_rows} rows", end="", file=sys.stderr, flush=True)

    report = build_report(arguments.output, arguments.to, arguments.image_root, show)
    if is_terminal:
        print("\r\033[K", end="", file=sys.stderr)
    print(f"{report.num_rows} rows; pictures: {report.num_made} made, {report.num_reused} reused")
    for reason, number in report.missing.most_common():
        print(f"  no {reason}: {number}")
    print(f"gallery: {report.page}")
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from diffedit_batch.demo.manifest import demo_job, write_demo_manifest
    from diffedit_batch.report.contact_sheet import write_contact_sheet
    from diffedit_batch.runtime.selection import UNDONE

    folder: Path = arguments.folder
    config = demo_job(write_demo_manifest(folder), folder / "output")
    _execute(config, UNDONE)
    sheet = write_contact_sheet(config.output.uri, folder, folder / "contact-sheet.png")
    print(f"picture: {sheet}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
