import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from jobs_on_disk import job

from diffedit_batch.models.identity import identify
from diffedit_batch.runtime.messages import WorkerInfo
from diffedit_batch.runtime.records import RunState, run_record

GUIDE = (Path(__file__).parents[2] / "configs" / "cluster" / "README.md").read_text("utf-8")
SLOW = GUIDE.partition("## When it is slow")[2]
PHASES = {"wait", "read", "edit", "write", "generate", "total"}


def test_fields_to_look_at_are_found() -> None:
    assert len(re.findall(r"`(?:seconds|counters|workers\[\])\.\w+`", SLOW)) > 15


@pytest.mark.parametrize("field", sorted(set(re.findall(r"`([a-z_]+(?:\[\])?\.\w+)`", SLOW))))
def test_what_to_look_at_when_it_is_slow_is_in_the_record(field: str, tmp_path: Path) -> None:
    state = RunState("run", seconds=dict.fromkeys(PHASES, 0.0))
    info = WorkerInfo("host", "cpu", 0.0)
    state.see([info], [info], [])
    config = job(tmp_path, Path("demo"))
    record = run_record(state, config, identify(config.model), datetime.now(UTC), "finished")
    record["workers[]"] = record["workers"][0]
    section, _, name = field.partition(".")
    assert name in {**record["config"].get(section, {}), **record.get(section, {})}
