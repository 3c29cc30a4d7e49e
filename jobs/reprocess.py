"""Bring the results of a job up to date, on a schedule.

    python jobs/reprocess.py configs/sd21.yaml
    python jobs/reprocess.py configs/sd21.yaml --retry-failed load,worker --prune
    17 3 * * *  cd /srv/diffedit && .venv/bin/python jobs/reprocess.py configs/sd21.yaml  # cron
    ray job submit --working-dir . -- python jobs/reprocess.py configs/sd21.yaml

Does the rows that are new, that changed, or that failed before; where there are none, or another
run is at it, it ends in seconds and starts neither Ray nor a model. It is `diffedit-batch run
--retry-failed --if-locked skip`; every flag, the output and the exit codes are those of
`diffedit-batch run`.
"""

import sys
from collections.abc import Sequence

from diffedit_batch import cli
from diffedit_batch.errors import STAGES

# What a schedule needs beside its config; a flag given on the command line wins.
DEFAULTS = [f"--retry-failed={','.join(STAGES)}", "--if-locked=skip"]


def main(argv: Sequence[str] | None = None) -> int:
    """Do what is due; returns the exit code."""
    return cli.main(["run", *DEFAULTS, *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
