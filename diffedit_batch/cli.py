"""`diffedit-batch`: parses, calls, prints; no logic of its own.

Exit codes: 0 finished or nothing to do, 1 unexpected error, 2 bad usage, config, manifest or model,
3 more failures than allowed, 4 workers could not be had or kept (resumable), 5 storage, 6 output
held by another run, 75 interrupted on request (resumable).
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from diffedit_batch import __version__, commands
from diffedit_batch.errors import DiffEditError, InterruptedRunError
from diffedit_batch.flags import add_estimate, add_output, add_preview, add_selection
from diffedit_batch.terminal import logs


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
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(
        name: str, command: Callable[[argparse.Namespace], int], what: str
    ) -> argparse.ArgumentParser:
        sub = subparsers.add_parser(name, help=what, description=what)
        sub.set_defaults(command=command)
        return sub

    run = add(
        "run", commands.run, "Run a job; run again, it continues with what is missing or changed."
    )
    plan = add("plan", commands.plan, "Check a job and count its work, without starting a model.")
    prepare = add(
        "prepare",
        commands.prepare,
        "Generate prompts and captions only, to be read and corrected before the run.",
    )
    preview = add(
        "preview",
        commands.preview,
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
    status = add("status", commands.status, "Show what an output folder holds.")
    status.add_argument("output", help="output folder of a job")
    status.add_argument("--json", action="store_true", help="print JSON")
    report = add(
        "report", commands.report, "Write a gallery of an output, to be opened in a browser."
    )
    report.add_argument("output", help="output folder of a job")
    report.add_argument("--to", type=Path, metavar="FOLDER", help="where to (OUTPUT/report)")
    report.add_argument(
        "--image-root",
        metavar="FOLDER",
        help="where the source images are (where the runs found them)",
    )
    export = add(
        "export",
        commands.export,
        "Copy an output into a dataset that other tools open, with its card.",
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
    demo = add(
        "demo", commands.demo, "Render scenes, edit them with the embedded model, draw a picture."
    )
    demo.add_argument("folder", nargs="?", default="out/demo", type=Path, help="(out/demo)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
