import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
from results_on_disk import commit, content, edited, failed, finish, pictures, results, wanted

from diffedit_batch.data import lease as lease_module
from diffedit_batch.data.holder import Holder, now, this_process
from diffedit_batch.data.lease import (
    EXPIRY_S,
    FOLDER,
    HEARTBEAT_S,
    NUM_WATCHED,
    free_epoch,
    hold_lease,
    newest_holder,
)
from diffedit_batch.data.ledger import Ledger
from diffedit_batch.data.parts import PartName, version_key
from diffedit_batch.data.storage import Storage, file_names
from diffedit_batch.errors import LeaseLostError, OutputHeldError, StorageError

LONG_AGO = "2026-01-01T00:00:00+00:00"


def put(storage: Storage, holder: Holder) -> Holder:
    """Write a lease file as its holder would."""
    storage.write(f"{FOLDER}/{holder.epoch:06d}.json", holder.to_json())
    return holder


def elsewhere(epoch: int = 1, heartbeat_at: str = LONG_AGO, **more: Any) -> Holder:
    """A holder of which nothing is known but what it writes."""
    return replace(
        this_process(epoch, "first"),
        host="far-away",
        process_space="far-away",
        heartbeat_at=heartbeat_at,
        **more,
    )


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses of a run that watches a holder, which take no time here."""
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    return pauses


@contextmanager
def taken_over(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within, another run holds the output, because it thought the first one dead."""
    with ExitStack() as stack:
        with monkeypatch.context() as patch:
            patch.setattr(lease_module, "is_gone", lambda holder: True)
            stack.enter_context(hold_lease(storage, "second"))
        yield


def test_a_second_run_is_refused_until_the_first_ends(storage: Storage) -> None:
    assert free_epoch(storage) == 1
    with hold_lease(storage, "first") as first:
        before = content(storage)
        assert free_epoch(storage) is None
        with (
            pytest.raises(
                OutputHeldError, match=r"run first on .*\(pid \d+\), which started \d+ s"
            ),
            hold_lease(storage, "second"),
        ):
            pass
        assert content(storage) == before
        first.check()
    assert free_epoch(storage) == 2
    with hold_lease(storage, "second") as second:
        assert second.holder.epoch == 2
    assert storage.names(FOLDER, "") == ["000002.json"]


def test_a_lease_is_released_on_errors_too(storage: Storage) -> None:
    with pytest.raises(ZeroDivisionError), hold_lease(storage, "first"):
        raise ZeroDivisionError
    holder = newest_holder(storage)
    assert holder is not None
    assert holder.is_released
    assert not [thread for thread in threading.enumerate() if thread.name == "lease"]


def test_of_many_at_once_one_wins(storage: Storage) -> None:
    start, end = threading.Barrier(6), threading.Event()
    outcomes: list[str] = []

    def run(number: int) -> None:
        start.wait()
        try:
            with hold_lease(storage, str(number)):
                outcomes.append("held")
                end.wait()
        except OutputHeldError:
            outcomes.append("refused")

    threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    while len(outcomes) < 6:
        time.sleep(0.01)
    end.set()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["held"] + ["refused"] * 5


def test_the_heart_beats(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    beats = itertools.count()
    monkeypatch.setattr(lease_module, "HEARTBEAT_S", 0.01)
    monkeypatch.setattr(lease_module, "now", lambda: f"beat {next(beats)}")
    with hold_lease(storage, "first"):
        seen: set[str] = set()
        while len(seen) < 3:
            holder = newest_holder(storage)
            assert holder is not None
            assert not holder.is_released
            seen.add(holder.heartbeat_at)


@pytest.mark.parametrize("is_reaped", [False, True])
def test_a_process_that_was_killed_here_is_replaced_at_once(
    storage: Storage, watched: list[float], is_reaped: bool
) -> None:
    script = (
        "import sys, time; from diffedit_batch.data.lease import hold_lease\n"
        "from diffedit_batch.data.storage import Storage\n"
        "with hold_lease(Storage(sys.argv[1]), 'first'): print('held', flush=True); time.sleep(99)"
    )
    command = [sys.executable, "-c", script, storage.uri]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(OutputHeldError), hold_lease(storage, "second"):
            pass
        process.send_signal(signal.SIGKILL)
        if is_reaped:
            process.wait()
        else:
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert free_epoch(storage) == 2
        with hold_lease(storage, "second") as lease:
            assert lease.holder.epoch == 2
    assert watched == []


def test_a_pid_that_is_another_process_now_is_dead(storage: Storage, watched: list[float]) -> None:
    ours = this_process(1, "first")
    put(storage, replace(ours, process_start_s=ours.process_start_s - 60))
    with hold_lease(storage, "second"):
        pass
    put(storage, this_process(9, "third"))
    with pytest.raises(OutputHeldError), hold_lease(storage, "fourth"):
        pass
    assert watched == []


def test_a_holder_elsewhere_that_stays_silent_is_replaced(
    storage: Storage, watched: list[float]
) -> None:
    put(storage, elsewhere())
    assert free_epoch(storage) is None
    with hold_lease(storage, "second") as lease:
        assert lease.holder.epoch == 2
    assert watched == [HEARTBEAT_S] * NUM_WATCHED


def test_a_holder_elsewhere_that_beats_while_watched_is_left_alone(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its clock is far behind ours, so that it looks dead.
    holder = put(storage, elsewhere())
    beats = iter(["2026-01-01T00:00:30+00:00", now()])
    monkeypatch.setattr(
        time,
        "sleep",
        lambda _: put(storage, replace(holder, heartbeat_at=next(beats))),
    )
    with pytest.raises(OutputHeldError, match="far-away"), hold_lease(storage, "second"):
        pass


def test_a_holder_elsewhere_that_ends_while_watched_is_followed(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = put(storage, elsewhere())
    monkeypatch.setattr(time, "sleep", lambda _: put(storage, replace(holder, is_released=True)))
    with hold_lease(storage, "second") as lease:
        assert lease.holder.epoch == 2


def test_a_holder_elsewhere_that_was_heard_of_is_not_even_watched(
    storage: Storage, watched: list[float]
) -> None:
    put(storage, elsewhere(heartbeat_at=now(), started_at=LONG_AGO))
    with (
        pytest.raises(OutputHeldError, match=rf"h ago and was last .* {EXPIRY_S:.0f} s after"),
        hold_lease(storage, "second"),
    ):
        pass
    assert watched == []


def test_a_number_that_had_come_and_gone_does_not_hold(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(storage, elsewhere(5, heartbeat_at=now()))
    looks = iter([None])
    monkeypatch.setattr(
        lease_module, "newest_holder", lambda storage: next(looks, newest_holder(storage))
    )
    with pytest.raises(OutputHeldError), hold_lease(storage, "second"):
        pass
    assert storage.names(FOLDER, "") == ["000005.json"]


def test_numbers_go_on_where_somebody_removed_the_leases(storage: Storage) -> None:
    commit(storage, [edited("a")])
    commit(storage, [edited("b")])
    storage.remove(f"{FOLDER}/{name}" for name in storage.names(FOLDER, ""))
    assert free_epoch(storage) == 3
    assert commit(storage, [edited("c")]) == ["part-000003-000001.parquet"]
    assert [row["id"] for row in results(storage)] == ["a", "b", "c"]


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"run_id": 1}'])
def test_a_file_that_is_no_lease_is_a_clear_error(storage: Storage, text: bytes) -> None:
    storage.write(f"{FOLDER}/000001.json", text)
    with pytest.raises(StorageError, match=r"000001\.json is not what a run writes there"):
        free_epoch(storage)


def test_who_has_lost_its_lease_writes_nothing(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hold_lease(storage, "first") as lease:
        ledger = Ledger(storage, lease)
        ledger.commit(pa.Table.from_pylist([edited("a")]))
        with taken_over(storage, monkeypatch):
            before = content(storage)
            with pytest.raises(LeaseLostError, match="taken over by run second"):
                ledger.commit(pa.Table.from_pylist([edited("b")]))
            assert lease.is_lost
            assert content(storage) == before
            assert len(Ledger(storage).committed()) == 1
    holder = newest_holder(storage)
    assert holder is not None
    assert (holder.run_id, holder.epoch) == ("second", 2)


def test_a_part_that_comes_late_is_never_a_result(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first run sleeps between its look at the lease and its write."""
    late = [edited("a", "late"), edited("b", "f"), failed("c")]
    with hold_lease(storage, "first") as lease:
        Ledger(storage, lease).commit(pa.Table.from_pylist([edited("a"), edited("b")]))
        with taken_over(storage, monkeypatch), monkeypatch.context() as patch:
            patch.setattr(lease, "check", lambda: None)
            for row in [edited("a"), *late[:2]]:
                for name in file_names(row["id"], row["fingerprint"]):
                    storage.write(name, b"png")
            ledger = Ledger(storage, lease)
            ledger._num_parts = 1
            assert ledger.commit(pa.Table.from_pylist(late)) == "part-000001-000002.parquet"
            assert Ledger(storage).parts() == [PartName(1, 1)]
    committed = Ledger(storage).committed()
    assert committed.get(version_key("a", "late")) is committed.get(version_key("c", "f")) is None
    assert committed.get(version_key("a", "f")) is False
    # It stays so for those who come later, and goes when one of them finishes.
    commit(storage, [edited("d")])
    assert Ledger(storage).parts() == [PartName(1, 1), PartName(3, 1)]
    balance = finish(storage, wanted(("a", "f"), ("b", "f"), ("d", "f")))
    assert balance.counts == {"edited": 3}
    assert storage.names("results", "") == list(balance.parts)
    assert pictures(storage) == {name for row_id in "abd" for name in file_names(row_id, "f")}


def test_what_was_committed_up_to_the_take_over_counts(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first run commits once more while the second one decides to take over."""
    with hold_lease(storage, "first") as lease:
        ledger = Ledger(storage, lease)
        ledger.commit(pa.Table.from_pylist([edited("a")]))
        create = storage.create

        def commit_and_create(path: str, data: bytes) -> bool:
            ledger.commit(pa.Table.from_pylist([edited("b")]))
            return create(path, data)

        monkeypatch.setattr(storage, "create", commit_and_create)
        with taken_over(storage, monkeypatch):
            assert Ledger(storage).parts() == [PartName(1, 1), PartName(1, 2)]


def test_a_lease_says_who_holds_it(storage: Storage) -> None:
    with hold_lease(storage, "first"):
        document = json.loads(storage.read(f"{FOLDER}/000001.json"))
    assert document["run_id"] == "first"
    assert document["pid"] == os.getpid()
    assert document["sealed"] == {}
    assert document["is_released"] is False
