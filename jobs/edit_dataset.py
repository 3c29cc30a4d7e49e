"""Edit a dataset: the job as an entry script.

    python jobs/edit_dataset.py configs/sd21.yaml --set input.manifest=data/manifest.parquet
    ray job submit --working-dir . -- python jobs/edit_dataset.py configs/sd21.yaml

The same arguments, output and exit codes as `diffedit-batch run`.
"""

import sys
from collections.abc import Sequence

from diffedit_batch import cli


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit code."""
    return cli.main(["run", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
