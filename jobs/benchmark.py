"""Measure what the job costs.

    python jobs/benchmark.py plan
    python jobs/benchmark.py plan --rows 200000 --done 199000 --images 100000 --json

`plan`: a manifest and the results of most of its rows are written to a temporary folder; measured
is what a rerun does until the first bundle of work is ready.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from diffedit_batch.cli import exit_code_of


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="WHAT")
    plan = commands.add_parser("plan", help="planning of a rerun that has little to do")
    plan.set_defaults(measure=_plan)
    plan.add_argument("--rows", type=int, default=1_000_000, help="of the manifest (1000000)")
    plan.add_argument("--done", type=int, default=999_000, help="of them committed (999000)")
    plan.add_argument("--images", type=int, default=1_000, help="files they name (1000)")
    plan.add_argument("--folder", type=Path, help="where the temporary folder is made")
    plan.add_argument("--json", action="store_true", help="print JSON instead of Markdown")
    options = parser.parse_args(argv)
    return exit_code_of(lambda: options.measure(options))


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


if __name__ == "__main__":
    sys.exit(main())
