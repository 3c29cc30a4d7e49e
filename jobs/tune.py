"""Search for the parameters of the default preset, on validation scenes only.

    pip install -c constraints.txt -e '.[evaluate]'
    python jobs/tune.py
    python jobs/tune.py --num-per-kind 40 --output out/tuning-large

Writes `tuning.md` and `masks.parquet`; edits already measured in the output folder are not run
again. Exit codes: 0 finished, 2 missing weights or stale results, 75 interrupted.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from diffedit_batch.cli import exit_code_of


def main(argv: Sequence[str] | None = None) -> int:
    """Search and report; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="demo", help="`demo` or a pipeline folder (demo)")
    parser.add_argument("--output", type=Path, default=Path("out/tuning"))
    parser.add_argument("--num-per-kind", type=int, default=24, help="edits of each kind (24)")
    options = parser.parse_args(argv)
    # Here, so that `--help` need not wait for torch.
    from diffedit_batch.evaluation.tune import tune

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")

    def search() -> int:
        page = tune(options.model, options.output, options.num_per_kind)
        print(page.read_text("utf-8"))
        print(f"tables: {page}")
        return 0

    return exit_code_of(search)


if __name__ == "__main__":
    sys.exit(main())
