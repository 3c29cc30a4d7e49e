"""The process that `cold_start` starts and watches: runs a job and says when what was there.

    python -m diffedit_batch.benchmark.first_batch config.json moments.json

Imports nothing of its own before the clock is read.
"""

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffedit_batch.runtime.records import RunState


def main(config_path: Path, moments_path: Path) -> None:
    """Run the job of a config; write the moments, in seconds since 1970, as JSON."""
    moments = {"interpreter": time.time()}
    from diffedit_batch.config import JobConfig
    from diffedit_batch.runtime.driver import run_job
    from diffedit_batch.runtime.session import ray_session

    moments["imports"] = time.time()
    config = JobConfig.model_validate_json(config_path.read_bytes())

    def watch(state: "RunState") -> None:
        if state.workers and "loaded" not in moments:
            moments["loaded"] = time.time()
            phases = state.workers[0].info.start_seconds
            moments.update({f"worker {phase}": seconds for phase, seconds in phases.items()})
        if state.counts and "first_batch" not in moments:
            moments["first_batch"] = time.time()

    with ray_session(config):
        moments["ray"] = time.time()
        run_job(config, on_progress=watch)
    moments_path.write_text(json.dumps(moments), "utf-8")


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:3]))
