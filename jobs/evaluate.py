"""Measure the quality of edits against rendered scenes whose true masks and true edits are known.

    pip install -c constraints.txt -e '.[evaluate]'
    python jobs/evaluate.py --tier ci
    python jobs/evaluate.py --tier full --split test --output out/evaluation-test
    python jobs/evaluate.py --arms reference,default,sdedit@0.6 --model path/to/pipeline

Writes `report.md`, `figure.png` and a Parquet file of items per arm. Arms already measured in the
output folder are not run again, so an interrupted run continues. Exit codes: 0 finished, 2 unknown
arm, missing weights or stale results, 75 interrupted.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from diffedit_batch.cli import exit_code_of


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and report; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tier", choices=["smoke", "ci", "full"], default="ci")
    parser.add_argument("--split", choices=["validation", "test"], default="validation")
    parser.add_argument("--arms", help="comma-separated; default: those of the tier")
    parser.add_argument("--model", default="demo", help="`demo` or a pipeline folder (demo)")
    parser.add_argument("--output", type=Path, help="(out/evaluation/TIER-SPLIT)")
    options = parser.parse_args(argv)
    # Here, so that `--help` need not wait for torch.
    from diffedit_batch.evaluation.run import evaluate

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")

    def measure() -> int:
        report = evaluate(
            tier=options.tier,
            split=options.split,
            arms=options.arms.split(",") if options.arms else None,
            model=options.model,
            output=options.output or Path("out/evaluation") / f"{options.tier}-{options.split}",
        )
        print(report.read_text("utf-8"))
        print(f"report: {report}")
        return 0

    return exit_code_of(measure)


if __name__ == "__main__":
    sys.exit(main())
