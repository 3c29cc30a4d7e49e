"""The commands of `diffedit-batch`: each calls what does the work, and prints what came of it.

Each takes the parsed flags of `cli` and returns an exit code; an error it raises has its own.
"""

import argparse
import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from diffedit_batch.config import JobConfig, load_config
from diffedit_batch.errors import OutputHeldError, StorageError
from diffedit_batch.flags import selection_of

if TYPE_CHECKING:
    from diffedit_batch.runtime.records import RunState
    from diffedit_batch.runtime.selection import Selection


def run(arguments: argparse.Namespace) -> int:
    """Run a job; where another run holds the output, as `--if-locked` says."""
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


def prepare(arguments: argparse.Namespace) -> int:
    """Generate prompts and captions, and say where they are to be read."""
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


def plan(arguments: argparse.Namespace) -> int:
    """Print what a run would do."""
    from diffedit_batch.runtime.plan import as_json, plan_job
    from diffedit_batch.terminal.plan import plan_text

    config = load_config(arguments.config, arguments.settings)
    found = plan_job(
        config,
        selection=selection_of(arguments),
        num_workers=arguments.workers,
        all_images=arguments.all_images,
        is_calibrated=arguments.calibrate,
    )
    print(as_json(found) if arguments.json else plan_text(found))
    return 0


def preview(arguments: argparse.Namespace) -> int:
    """Edit a few rows beside the output, and write their gallery."""
    from diffedit_batch.report.build import find_folder
    from diffedit_batch.runtime.preview import SELECTION, make_preview

    config = load_config(arguments.config, arguments.settings).with_absolute_paths()
    find_folder(config.output.preview_uri, arguments.to)  # else known only in the end
    made = make_preview(config, arguments.num_rows, sweeps=arguments.sweeps, where=arguments.where)
    variants = f", {made.num_variants} variants of each" if made.num_variants > 1 else ""
    print(
        f"preview: {made.num_rows} rows{variants}; {made.num_kinds} kinds among the"
        f" {made.num_candidates} rows looked at"
    )
    for kind, number in made.refused.most_common():
        print(f"  cannot be edited, {kind}: {number}")
    _execute(made.config, SELECTION, arguments)
    _write_gallery(made.config.output.uri, arguments.to)
    return 0


def status(arguments: argparse.Namespace) -> int:
    """Print what an output holds."""
    from diffedit_batch.runtime.status import read_status
    from diffedit_batch.terminal.summary import filtered_of

    found = read_status(arguments.output)
    if arguments.json:
        print(json.dumps(found, indent=2))
        return 0
    counts = ", ".join(f"{number} {name}" for name, number in found["counts"].items())
    print(f"{found['state']}: {counts}")
    for line in filtered_of(found["num_filtered"], found["filter_reasons"]):
        print(line)
    if found["last_run"]:
        print(f"last run: {found['last_run']['run_id']}, {found['last_run']['outcome']}")
    return 0


def report(arguments: argparse.Namespace) -> int:
    """Write the gallery of an output."""
    _write_gallery(arguments.output, arguments.to, arguments.image_root)
    return 0


def _write_gallery(output: str, to: Path | None, image_root: str | None = None) -> None:
    from diffedit_batch.report.build import build_report

    with _row_counter() as show:
        gallery = build_report(output, to, image_root, show)
    print(
        f"{gallery.num_rows} rows; pictures: {gallery.num_made} made, {gallery.num_reused} reused"
    )
    for reason, number in gallery.missing.most_common():
        print(f"  no {reason}: {number}")
    print(f"gallery: {gallery.page}")


def export(arguments: argparse.Namespace) -> int:
    """Copy an output into a dataset for other tools."""
    from diffedit_batch.export.export import export_output

    with _row_counter() as show:
        copy = export_output(
            arguments.output, arguments.to, arguments.format, arguments.image_root, show
        )
    print(f"{copy.num_rows} rows in {copy.num_files} files")
    if copy.num_failed:
        print(f"  left out: {copy.num_failed} that failed")
    for reason, number in copy.missing.most_common():
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


def demo(arguments: argparse.Namespace) -> int:
    """Edit rendered scenes, and draw a picture of them."""
    from diffedit_batch.demo.manifest import demo_job, write_demo_manifest
    from diffedit_batch.report.contact_sheet import write_contact_sheet
    from diffedit_batch.runtime.selection import UNDONE

    folder: Path = arguments.folder
    try:
        manifest = write_demo_manifest(folder)
    except OSError as error:
        raise StorageError(
            f"the demo cannot be written to {folder}: {error.strerror}; name another folder"
        ) from error
    config = demo_job(manifest, folder / "output")
    _execute(config, UNDONE, arguments)
    sheet = write_contact_sheet(config.output.uri, folder, folder / "contact-sheet.png")
    print(f"picture: {sheet}")
    return 0
