"""Generate the prompts and captions of a job, without editing anything.

    python jobs/prepare_prompts.py configs/sd21.yaml
    ray job submit --working-dir . -- python jobs/prepare_prompts.py configs/sd21.yaml

Writes `prompts.parquet` and `captions.parquet` under `output.uri`, for people to read and correct
before they pay for the edit; `jobs/edit_dataset.py` with the same config then uses them. The same
arguments, output and exit codes as `diffedit-batch prepare`.
"""

import sys
from collections.abc import Sequence

from diffedit_batch import cli


def main(argv: Sequence[str] | None = None) -> int:
    """Generate what is missing; returns the exit code."""
    return cli.main(["prepare", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
