"""Flags of the command line: which rows a run does, and what it says meanwhile."""

import argparse
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from diffedit_batch.errors import STAGES

if TYPE_CHECKING:
    from diffedit_batch.runtime.selection import Selection


def add_selection(parser: argparse.ArgumentParser, *, can_prune: bool) -> None:
    """Add the flags behind a `Selection`; without any, rows that have no result are done."""
    parser.add_argument("--limit", type=_positive, metavar="N", help="only the first N rows")
    parser.add_argument(
        "--where",
        metavar="SQL",
        help="only rows that match, e.g. \"split = 'train' AND score > 0.5\" (needs DuckDB)",
    )
    parser.add_argument(
        "--retry-failed",
        nargs="?",
        type=_failures,
        const=",".join(STAGES),
        default="",
        metavar="WHICH",
        help="also redo rows that failed; only those of some stages or types of error, e.g."
        " load/ImageNotFound,worker",
    )
    parser.add_argument(
        "--force",
        nargs="?",
        type=_since,
        const="now",
        metavar="SINCE",
        help="redo every row; with a run id or UTC time (20261122T101500), those whose result is"
        " older, so that the same command continues a forced run",
    )
    if can_prune:
        parser.add_argument(
            "--prune", action="store_true", help="drop results of rows that left the manifest"
        )
    else:
        parser.set_defaults(prune=False)


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say what is printed."""
    parser.add_argument(
        "--quiet", action="store_true", help="print warnings and errors, and nothing else"
    )
    parser.add_argument(
        "--json",
        action="store_true",
        dest="json_summary",
        help="print the summary as JSON, however the run ends",
    )
    parser.add_argument(
        "--log-json",
        action="store_true",
        help="progress, warnings and errors as JSON on stderr, one object a line",
    )


def add_estimate(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a plan."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--workers",
        type=_positive,
        metavar="N",
        help="among whom the work is shared (cluster.workers, or one)",
    )
    parser.add_argument(
        "--calibrate",
        action="store_true",
        help="load the model here and edit a few rows, without writing anything, to tell the time",
    )
    parser.add_argument(
        "--all-images",
        action="store_true",
        help="look at the header of every image, not of a thousand only",
    )


def add_preview(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a preview."""
    parser.add_argument(
        "-n", "--num-rows", type=_positive, default=16, metavar="N", help="rows to edit (16)"
    )
    parser.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="KEY=A,B,...",
        dest="sweeps",
        help="edit each row once with every value, side by side in the gallery, e.g. --sweep"
        " edit.mask_threshold=0.3,0.4,0.5; several keys: every combination",
    )
    parser.add_argument("--where", metavar="SQL", help="only rows that match (needs DuckDB)")
    parser.add_argument(
        "--to", type=Path, metavar="FOLDER", help="where the gallery goes (OUTPUT-preview/report)"
    )


def selection_of(arguments: argparse.Namespace) -> "Selection":
    """What parsed arguments ask for. Raises ConfigError where they contradict each other."""
    from diffedit_batch.runtime.selection import Selection

    return Selection(
        limit=arguments.limit,
        where=arguments.where,
        retry_failed=arguments.retry_failed,
        force=arguments.force,
        prune=arguments.prune,
    )


def _failures(text: str) -> frozenset[str]:
    kinds = frozenset(kind.strip() for kind in text.split(",") if kind.strip())
    for kind in kinds:
        if kind.partition("/")[0] not in STAGES:
            raise argparse.ArgumentTypeError(
                f"{kind!r} is not STAGE or STAGE/TYPE, with one of the stages {', '.join(STAGES)};"
                " the config stands before this flag"
            )
    return kinds


def _since(text: str) -> str:
    if text == "now":
        return f"{datetime.now(UTC):%Y%m%dT%H%M%S}"
    if not re.fullmatch(r"\d{8}T\d{6}(-\w+)?", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a run id or a UTC time like 20261122T101500; the config stands before"
            " this flag"
        )
    return text


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number
