"""`diffedit-batch`: parses, calls, prints; no logic of its own.

Exit codes: 0 finished or nothing to do, 1 unexpected error, 2 bad usage, config, manifest or model,
3 more failures than allowed, 4 workers could not be had or kept (resumable), 5 storage, 6 output
held by another run, 75 interrupted on request (resumable).
"""

import argparse
import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from diffedit_batch import __version__
from diffedit_batch.config import JobConfig, load_config
from diffedit_batch.errors import DiffEditError, InterruptedRunError, OutputHeldError
from diffedit_batch.flags import (
    add_estimate,
    add_output,
    add_preview,
    add_selection,
    selection_of,
)
from diffedit_batch.terminal import logs

if TYPE_CHECKING:
    from diffedit_batch.runtime.records import RunState
    from diffedit_batch.runtime.selection import Selection


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    arguments = _parser().parse_args(argv)
    logs.set_up(as_json=arguments.log_json)
    command: Callable[[argparse.Namespace], int] = arguments.command
    said: list[str] = []

    def tell(message: str, exit_code: int) -> None:
        said.append(message)
        (logs.log_error if arguments.log_json else _print_error)(message, exit_code)

    exit_code = exit_code_of(lambda: command(arguments), tell)
    if arguments.json_summary:
        from diffedit_batch.terminal.summary import json_of

        print(json_of(arguments.state, exit_code, "".join(said)))
    return exit_code


def _print_error(message: str, exit_code: int) -> None:
    print(f"error: {message}", file=sys.stderr)


def exit_code_of(
    command: Callable[[], int], tell: Callable[[str, int], None] = _print_error
) -> int:
    """What a command returns, or the exit code of the error it ends with, told in one message."""
    try:
        return command()
    except DiffEditError as error:
        tell("\n".join([str(error), *getattr(error, "__notes__", [])]), error.exit_code)
        return error.exit_code
    except KeyboardInterrupt:
        tell("interrupted; the same command continues", InterruptedRunError.exit_code)
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
    parser.set_defaults(quiet=False, json_summary=False, log_json=False, state=None)
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
    preview = add(
        "preview",
        _preview,
        "Edit a few rows of every kind beside the output, and show them in a gallery.",
    )
    for sub in (run, plan, prepare, preview):
        sub.add_argument("config", help="YAML file, e.g. configs/sd21.yaml")
        sub.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            dest="settings",
            help="override a key, e.g. --set edit.guidance_scale=5 (repeatable)",
        )
    for sub in (run, plan, prepare):
        add_selection(sub, can_prune=sub is not prepare)
    for sub in (run, prepare):
        add_output(sub)
    add_preview(preview)
    add_estimate(plan)
    run.add_argument(
        "--if-locked",
        choices=("fail", "skip"),
        default="fail",
        help="where another run holds the output: exit with code 6, or do nothing and exit with 0"
        " (fail)",
    )
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
    export = add(
        "export", _export, "Copy an output into a dataset that other tools open, with its card."
    )
    export.add_argument("output", help="output folder of a job")
    export.add_argument(
        "--to", required=True, metavar="FOLDER", help="where to, local or s3://, gs://, ..."
    )
    export.add_argument(
        "--format",
        choices=("parquet", "imagefolder", "webdataset"),
        default="parquet",
        help="Parquet with the pictures inside, files beside a table, or tar files (parquet)",
    )
    export.add_argument(
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
        _execute(config, selection_of(arguments), arguments)
    except OutputHeldError as error:
        if arguments.if_locked == "fail":
            raise
        if not arguments.quiet:
            print(f"skipped: {error}", file=sys.stderr if arguments.json_summary else sys.stdout)
    return 0


def _execute(config: JobConfig, selection: "Selection", how: argparse.Namespace) -> None:
    from diffedit_batch.runtime.driver import run_job
    from diffedit_batch.terminal.summary import summary_of

    state = _watched(run_job, config, selection, how)
    if not how.quiet and not how.json_summary:
        print(summary_of(state, config.output.uri))


def _prepare(arguments: argparse.Namespace) -> int:
    from diffedit_batch.runtime.driver import prepare_job
    from diffedit_batch.terminal.summary import failures_of, generated_of

    config = load_config(arguments.config, arguments.settings)
    state = _watched(prepare_job, config, selection_of(arguments), arguments)
    if arguments.quiet or arguments.json_summary:
        return 0
    for line in generated_of(state) + failures_of(state):
        print(line)
    print(f"prompts:  {config.output.uri}/prompts.parquet, one row per concept")
    print(f"captions: {config.output.uri}/captions.parquet, one row per image")
    print(
        "To correct one, change its text and leave the other columns as they are; for a concept"
        " that failed, add a row with concept and prompts. `diffedit-batch run` then uses it."
    )
    return 0


def _watched(
    job: "Callable[..., RunState]",
    config: JobConfig,
    selection: "Selection",
    how: argparse.Namespace,
) -> "RunState":
    """Run a job and show its progress, `how.state` being the last there was of it.

    The driver stops in an orderly way while workers run; before and after that, signals are like
    Ctrl-C.
    """
    from diffedit_batch.terminal.progress import progress

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGUSR1, signal.default_int_handler)
    with progress(is_quiet=how.quiet, as_json=how.log_json) as show:

        def watch(state: "RunState") -> None:
            how.state = state
            show(state)

        return job(config, selection=selection, on_progress=watch)


def _plan(arguments: argparse.Namespace) -> int:
    from diffedit_batch.runtime.plan import as_json, plan_job
    from diffedit_batch.terminal.plan import plan_text

    config = load_config(arguments.config, arguments.settings)
    plan = plan_job(
        config,
        selection=selection_of(arguments),
        num_workers=arguments.workers,
        all_images=arguments.all_images,
        is_calibrated=arguments.calibrate,
    )
    print(as_json(plan) if arguments.json else plan_text(plan))
    return 0


def _preview(arguments: argparse.Namespace) -> int:
    from diffedit_batch.report.build import find_folder
    from diffedit_batch.runtime.preview import SELECTION, make_preview

    config = load_config(arguments.config, arguments.settings).with_absolute_paths()
    find_folder(config.output.preview_uri, arguments.to)  # else known only in the end
    preview = make_preview(
        config, arguments.num_rows, sweeps=arguments.sweeps, where=arguments.where
    )
    variants = f", {preview.num_variants} variants of each" if preview.num_variants > 1 else ""
    print(
        f"preview: {preview.num_rows} rows{variants}; {preview.num_kinds} kinds among the"
        f" {preview.num_candidates} rows looked at"
    )
    for kind, number in preview.refused.most_common():
        print(f"  cannot be edited, {kind}: {number}")
    _execute(preview.config, SELECTION, arguments)
    _write_gallery(preview.config.output.uri, arguments.to)
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from diffedit_batch.runtime.status import read_status
    from diffedit_batch.terminal.summary import filtered_of

    status = read_status(arguments.output)
    if arguments.json:
        print(json.dumps(status, indent=2))
        return 0
    counts = ", ".join(f"{number} {name}" for name, number in status["counts"].items())
    print(f"{status['state']}: {counts}")
    for line in filtered_of(status["num_filtered"], status["filter_reasons"]):
        print(line)
    if status["last_run"]:
        print(f"last run: {status['last_run']['run_id']}, {status['last_run']['outcome']}")
    return 0


def _report(arguments: argparse.Namespace) -> int:
    _write_gallery(arguments.output, arguments.to, arguments.image_root)
    return 0


def _write_gallery(output: str, to: Path | None, image_root: str | None = None) -> None:
    from diffedit_batch.report.build import build_report

    with _row_counter() as show:
        report = build_report(output, to, image_root, show)
    print(f"{report.num_rows} rows; pictures: {report.num_made} made, {report.num_reused} reused")
    for reason, number in report.missing.most_common():
        print(f"  no {reason}: {number}")
    print(f"gallery: {report.page}")


def _export(arguments: argparse.Namespace) -> int:
    from diffedit_batch.export.export import export_output

    with _row_counter() as show:
        export = export_output(
            arguments.output, arguments.to, arguments.format, arguments.image_root, show
        )
    print(f"{export.num_rows} rows in {export.num_files} files")
    if export.num_failed:
        print(f"  left out: {export.num_failed} that failed")
    for reason, number in export.missing.most_common():
        print(f"  no {reason}: {number}")
    print(f"dataset: {arguments.to}  card: README.md")
    return 0


@contextmanager
def _row_counter() -> Iterator[Callable[[int, int], None]]:
    """What counts rows up on a terminal."""
    is_terminal = sys.stderr.isatty()

    def show(num_done: int, num_rows: int) -> None:
        if is_terminal and (num_done % 100 == 0 or num_done == num_rows):
            print(f"\r\033[K{num_done}/{num_rows} rows", end="", file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        if is_terminal:
            print("\r\033[K", end="", file=sys.stderr)


def _demo(arguments: argparse.Namespace) -> int:
    from diffedit_batch.demo.manifest import demo_job, write_demo_manifest
    from diffedit_batch.report.contact_sheet import write_contact_sheet
    from diffedit_batch.runtime.selection import UNDONE

    folder: Path = arguments.folder
    config = demo_job(write_demo_manifest(folder), folder / "output")
    _execute(config, UNDONE, arguments)
    sheet = write_contact_sheet(config.output.uri, folder, folder / "contact-sheet.png")
    print(f"picture: {sheet}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
