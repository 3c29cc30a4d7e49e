"""Measure what the job costs.

    python jobs/benchmark.py all --device cuda
    python jobs/benchmark.py engine --model sd21-768 --sizes 1,16,64 --compile off,full
    python jobs/benchmark.py baselines --model sd21-512 --baselines guide,resident,ours
    python jobs/benchmark.py end-to-end --model demo --device cpu --rows 48
    python jobs/benchmark.py scheduler --workers 16 --groups 1600 --group-seconds 1
    python jobs/benchmark.py cold-start --model demo --device cpu
    python jobs/benchmark.py plan --rows 200000 --done 199000 --images 100000 --json

Each writes `report.json`, `report.md` and, where there is a curve, `figure.png` to
`out/benchmark/WHAT-MODEL`, with hardware, versions, commit and date. Models: `sd15`, `sd21-512`,
`sd21-768` and `small` have their true shapes and random weights, `demo` is the embedded one.
`plan` only prints: a manifest and the results of most of its rows are written to a temporary
folder; measured is what a rerun does until the first bundle of work is ready.

Exit codes: 0 finished, 2 a device, model or baseline that is not there, 4 workers could not be had.
"""

import sys
from collections.abc import Sequence

from diffedit_batch.benchmark import command


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    return command.main(argv, __doc__)


if __name__ == "__main__":
    sys.exit(main())
