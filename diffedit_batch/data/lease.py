"""The right to write to an output folder, which one run holds at a time.

A lease is a file `_diffedit/lease/<epoch>.json`, created only where there is none; the highest
number holds. Its holder rewrites it as a heartbeat and marks it released in the end. Where a holder
is dead, the next run creates the next number: exactly one of several wins, on a disk as on an
object store. A holder that was only asleep sees the higher number before it commits, and stops.

It may fall asleep between that look and its write. So every holder first seals all epochs before
its own: a part of them with a higher number than the last one there was then is never a result.
"""

import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from diffedit_batch.data.holder import Holder, age_s, describe, is_gone, now, this_process
from diffedit_batch.data.parts import PartName, part_names
from diffedit_batch.data.storage import Storage
from diffedit_batch.errors import LeaseLostError, OutputHeldError, StorageError

logger = logging.getLogger(__name__)

FOLDER = "_diffedit/lease"

HEARTBEAT_S = 30.0
EXPIRY_S = 120.0
"""A holder on another host that was silent for so long may be dead, if clocks agree."""

NUM_WATCHED = 3
"""Heartbeats it then has to miss while being watched. NFS may show an old folder for a minute."""

_BEAT_PATIENCE_S = 5.0


class Lease:
    """A lease that this process holds; got from `hold_lease`.

    Attributes:
        holder: what its file says.
        is_lost: whether another run was seen to have taken over.
    """

    def __init__(self, storage: Storage, holder: Holder) -> None:
        self.holder = holder
        self.is_lost = False
        self._storage = storage
        # A heartbeat that comes late is worth nothing; the next one tries again.
        self._beats = Storage(storage.uri)
        self._beats.patience_s = _BEAT_PATIENCE_S
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Look whether this run still holds the output; to be called before every commit.

        Raises:
            LeaseLostError: another run has taken over.
        """
        self._check(self._storage)

    def release(self) -> None:
        """Stop the heartbeat and say that this run is done."""
        self._is_over.set()
        self._thread.join(timeout=2 * _BEAT_PATIENCE_S)
        if not self.is_lost and not self._thread.is_alive():
            try:
                try:
                    self._write(is_released=True)
                except StorageError:
                    # A full disk has no room for it; to remove the file takes none.
                    self._beats.remove([_path(self.holder.epoch)])
            except StorageError as error:
                logger.warning("the lease could not be released, and has to expire: %s", error)

    def _check(self, storage: Storage) -> None:
        newest = newest_holder(storage)
        if newest is not None and newest.epoch > self.holder.epoch:
            self.is_lost = True
            raise LeaseLostError(
                f"{storage.uri} was taken over by run {newest.run_id} on {newest.host}"
                f" (pid {newest.pid}), because nothing was heard of run {self.holder.run_id} for a"
                " while. What it committed before that is kept; the other run does the rest."
            )

    def _beat(self) -> None:
        while not self._is_over.wait(HEARTBEAT_S):
            try:
                self._check(self._beats)
                self._write()
            except LeaseLostError:
                return
            except StorageError as error:
                logger.warning("no heartbeat could be written: %s", error)

    def _write(self, is_released: bool = False) -> None:
        holder = replace(self.holder, heartbeat_at=now(), is_released=is_released)
        self._beats.write(_path(holder.epoch), holder.to_json())


@contextmanager
def hold_lease(storage: Storage, run_id: str) -> Iterator[Lease]:
    """The lease of an output folder for the length of a run.

    A holder that is dead for certain (its process on this machine is gone) is replaced at once; one
    that looks dead is watched first, by our own clock.

    Raises:
        OutputHeldError: another run holds it.
        StorageError: the folder cannot be written.
    """
    lease = Lease(storage, _acquire(storage, run_id))
    try:
        yield lease
    finally:
        lease.release()


def free_epoch(storage: Storage) -> int | None:
    """The number the next lease would have; None while a run may hold the output.

    Whoever then gets that very number knows that nobody wrote since.
    """
    newest = newest_holder(storage)
    if newest is None or newest.is_released or is_gone(newest):
        return _next_epoch(newest, part_names(storage))
    return None


def newest_holder(storage: Storage) -> Holder | None:
    """The holder of the highest lease, released or not; None where there never was one.

    Raises:
        StorageError: its file is not that of a lease.
    """
    while numbers := _numbers(storage):
        path = _path(numbers[-1])
        try:
            return Holder(**json.loads(storage.read(path)))
        except FileNotFoundError:  # a higher one has come, and this one is gone
            continue
        except (ValueError, TypeError) as error:
            raise StorageError(
                f"{storage.full(path)} is not what a run writes there: {error}. Where no run is"
                " alive, remove it."
            ) from error
    return None


def _acquire(storage: Storage, run_id: str) -> Holder:
    while True:
        before = newest_holder(storage)
        if before is not None and not before.is_released:
            if not is_gone(before) and not _is_silent(storage, before):
                if newest_holder(storage) != before:
                    continue
                raise OutputHeldError(describe(storage.uri, before, EXPIRY_S))
            logger.warning("taking over from run %s, which did not end", before.run_id)
        ours = this_process(_next_epoch(before, part_names(storage)), run_id)
        if not storage.create(_path(ours.epoch), ours.to_json()):
            continue
        numbers = _numbers(storage)
        if numbers[-1:] != [ours.epoch]:
            # We looked long ago, and created a number that had come and gone.
            storage.remove([_path(ours.epoch)])
            continue
        # Only now: until it could see our number, the holder before us may have committed more.
        sealed: dict[str, int] = {}
        for part in part_names(storage):
            if before is None or before.adopts(part):
                sealed[str(part.epoch)] = part.number
        ours = replace(ours, sealed=sealed)
        storage.write(_path(ours.epoch), ours.to_json())
        storage.remove(_path(number) for number in numbers[:-1])
        return ours


def _next_epoch(before: Holder | None, parts: list[PartName]) -> int:
    # Above that of every part, too: someone may have removed the folder of leases.
    return max(before.epoch if before else 0, parts[-1].epoch if parts else 0) + 1


def _numbers(storage: Storage) -> list[int]:
    names = storage.names(FOLDER, ".json")
    return sorted(int(name.removesuffix(".json")) for name in names)


def _path(epoch: int) -> str:
    return f"{FOLDER}/{epoch:06d}.json"


def _is_silent(storage: Storage, holder: Holder) -> bool:
    """Whether the holder has been silent, and stays so while we watch."""
    if abs(age_s(holder.heartbeat_at)) < EXPIRY_S:  # of either sign, where clocks disagree
        return False
    logger.warning(
        "run %s on %s holds %s and was silent for long; watching it for %.0f s",
        *(holder.run_id, holder.host, storage.uri, NUM_WATCHED * HEARTBEAT_S),
    )
    for _ in range(NUM_WATCHED):
        time.sleep(HEARTBEAT_S)
        if newest_holder(storage) != holder:
            return False
    return True
