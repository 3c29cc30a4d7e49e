import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from diffedit_batch.data.storage import Storage
from diffedit_batch.runtime.compile_cache import shared_compiling


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What was loaded, of a compiler that leaves `code`."""
    found: list[bytes] = []
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: (b"code", None))
    monkeypatch.setattr(torch.compiler, "load_cache_artifacts", found.append)
    return found


def test_one_goes_ahead_and_the_others_load_what_it_left(
    tmp_path: Path, loaded: list[bytes]
) -> None:
    storage = Storage(str(tmp_path))
    order: list[str] = []
    goes_ahead, may_end = threading.Event(), threading.Event()

    def lead() -> None:
        with shared_compiling(storage, "gpu"):
            goes_ahead.set()
            assert may_end.wait(60)
            order.append("first")

    def follow() -> None:
        with shared_compiling(storage, "gpu"):
            order.append("other")

    leader = threading.Thread(target=lead)
    leader.start()
    assert goes_ahead.wait(60)
    follower = threading.Thread(target=follow)
    follower.start()
    may_end.set()
    leader.join(60)
    follower.join(60)
    assert order == ["first", "other"]
    assert loaded == [b"code"]
    with shared_compiling(storage, "gpu"):
        pass  # a later run
    assert loaded == [b"code"] * 2
    with shared_compiling(storage, "another gpu"):
        pass
    assert loaded == [b"code"] * 2


def test_one_that_failed_leaves_nothing_and_holds_nobody_up(
    storage: Storage, loaded: list[bytes]
) -> None:
    with pytest.raises(RuntimeError, match="no compiler"), shared_compiling(storage, "gpu"):
        raise RuntimeError("no compiler")
    with shared_compiling(storage, "gpu"):
        pass
    assert loaded == []
    with shared_compiling(storage, "gpu"):
        pass
    assert loaded == [b"code"]


def test_one_that_died_is_waited_for_with_patience_and_no_longer(
    tmp_path: Path, loaded: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(str(tmp_path))
    killed = shared_compiling(storage, "gpu")
    killed.__enter__()
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with shared_compiling(storage, "gpu", patience_s=30):
        pass
    assert 30 < now < 33
    assert loaded == []
    with shared_compiling(storage, "gpu"):
        pass
    assert loaded == [b"code"]


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_what_one_process_compiled_another_does_not(tmp_path: Path) -> None:
    code = """
import sys
import torch
from torch._dynamo.utils import counters
from diffedit_batch.data.storage import Storage
from diffedit_batch.runtime.compile_cache import shared_compiling
with shared_compiling(Storage(sys.argv[1]), "cpu"):
    torch.compile(lambda x: x.sin() + 1)(torch.zeros(8))
print(counters["inductor"]["fxgraph_cache_hit"], counters["inductor"]["fxgraph_cache_miss"])
"""
    found = [
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "output")],
            env={"PATH": "/usr/bin:/bin", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / name)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for name in ("one", "other")
    ]
    assert found == [["0", "1"], ["1", "0"]]
