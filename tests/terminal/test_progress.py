import io
import json
import logging
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from rich.console import Console

from diffedit_batch.engine.counters import Counters
from diffedit_batch.runtime.messages import BundleResult, WorkerInfo
from diffedit_batch.runtime.records import RunState
from diffedit_batch.terminal import logs, progress
from diffedit_batch.terminal.live import view_of


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    now = [0.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return lambda seconds: now.append(now.pop() + seconds)


def state_of(num_workers: int = 2, num_gone: int = 0) -> RunState:
    """Of each 100 rows of the workers, 30 are done."""
    state = RunState("20261122T101500-abc", num_rows=100 * num_workers)
    infos = [
        WorkerInfo(f"node{number}", "NVIDIA H100", 0.0, gpu_memory_bytes=80 * 2**30, pid=number)
        for number in range(num_workers)
    ]
    state.see(infos, infos, [])
    for number, info in enumerate(infos):
        rows = [{"id": str(row), "status": "edited"} for row in range(30)]
        state.deliver(info, BundleResult(rows, Counters(), {}, (40 + number) * 2**30))
    state.selected["new"], state.counts["edited"] = state.num_rows, 30 * num_workers
    state.see(infos, infos[num_gone:], [(info.name, "died") for info in infos[:num_gone]])
    return state


def shown(state: RunState) -> str:
    console = Console(file=io.StringIO(), width=100, color_system=None)
    console.print(view_of(state))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_live_view_has_a_line_for_all_and_one_for_each_worker() -> None:
    state = state_of(num_gone=1)
    state.counts["failed"] = 3
    headline, header, worker, lost = shown(state).splitlines()
    assert "63/200 rows" in headline
    assert "rows/s" in headline
    assert "3 failed" in headline
    assert " left" in headline
    assert header.split() == ["worker", "device", "rows", "failed", "rows/s", "GPU", "memory"]
    assert worker.startswith("node1:1  NVIDIA H100")
    assert "41.0 of 80.0 GiB" in worker
    assert "node0" not in worker
    assert lost.strip() == "workers lost: 1"


def test_the_live_view_shows_the_slowest_of_many_workers() -> None:
    state = state_of(num_workers=12)
    for worker in state.workers[:4]:
        worker.deliver(BundleResult([{"id": "", "status": "edited"}] * 100, Counters(), {}))
    text = shown(state)
    names = [line.split()[0] for line in text.splitlines() if line.startswith("node")]
    assert names == [f"node{number}:{number}" for number in range(4, 12)]
    assert "and 4 that are faster" in text


def test_the_live_view_says_what_is_waited_for() -> None:
    state = RunState("run", num_rows=5, phase="prompts: 2/8")
    assert shown(state).strip() == "prompts: 2/8 ..."
    state.phase = ""
    assert "0/5 rows  none back yet  0 failed" in shown(state)
    assert progress.line_of(state) == "0/5 rows, none back yet, 0 failed, workers are starting"
    assert "workers are starting" in shown(state)


def test_elsewhere_a_line_every_ten_seconds(
    clock: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with progress.progress() as show:
        for _ in range(21):
            clock(1)
            show(state_of())
        print("(raylet) a worker died")
    out, err = capsys.readouterr()
    first, second, foreign = err.splitlines()
    assert first.startswith("60/200 rows, ")
    assert first.endswith(" left")
    assert "0 failed, workers: 2" in second
    assert (out, foreign) == ("", "(raylet) a worker died"), "stdout is for the summary"


def test_quiet_is_quiet(clock: Callable[[float], None], capsys: pytest.CaptureFixture[str]) -> None:
    with progress.progress(is_quiet=True) as show:
        clock(60)
        show(state_of())
    assert capsys.readouterr() == ("", "")


def test_json_lines_of_progress_of_warnings_and_of_what_ray_prints(
    clock: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    before = logging.getLogger().handlers[:]
    try:
        logs.set_up(as_json=True)
        with progress.progress(as_json=True) as show:
            clock(10)
            show(state_of(num_gone=1))
            print("(raylet) a worker\ndied")
        logging.getLogger("some.module").warning("%s at s3://key:secret@bucket", "failed")
        try:
            raise RuntimeError("broken")
        except RuntimeError:
            logging.getLogger("some.module").exception("ended")
        logs.log_error("no such folder", 2)
    finally:
        logging.getLogger().handlers[:] = before
        progress.logger.setLevel(logging.NOTSET)
    out, err = capsys.readouterr()
    assert out == ""
    told, printed, warning, exception, error = (json.loads(line) for line in err.splitlines())
    assert told.keys() >= {"timestamp", "level", "logger", "message", "eta_s", "rows_per_s"}
    assert told["level"] == "INFO"
    assert (told["run_id"], told["num_done"], told["num_left"]) == ("20261122T101500-abc", 60, 140)
    assert list(told["workers"]) == ["node1:1"]
    assert told["workers"]["node1:1"]["gpu_memory_used_bytes"] == 41 * 2**30
    assert printed["message"] == "(raylet) a worker\ndied"
    assert warning["logger"] == "some.module"
    assert warning["message"] == "failed at s3://bucket"
    assert "RuntimeError: broken" in exception["exception"]
    assert (error["level"], error["exit_code"]) == ("ERROR", 2)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (89, "89 s"),
        (150, "2 min"),
        (5399, "1 h 30 min"),
        (7260, "2 h 1 min"),
        (86400 * 3 + 3600, "3 d 1 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text
