"""Who holds the lease of an output folder, and whether that process is alive."""

import json
import os
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

from diffedit_batch.data.parts import PartName

_SAME_START_S = 2.0


@dataclass(frozen=True)
class Holder:
    """What a lease file says of the run that holds it.

    Attributes:
        epoch: number of the lease.
        run_id: of the run.
        host: name of its machine.
        pid: of its driver.
        process_space: within which `pid` means that process: machine since its start, container.
        process_start_s: when the process started, in seconds since the machine did.
        started_at: UTC time at which it took the lease.
        heartbeat_at: UTC time at which it last wrote this.
        is_released: whether it is done.
        sealed: the last part of every earlier epoch that has any; None until that is known.
    """

    epoch: int
    run_id: str
    host: str
    pid: int
    process_space: str
    process_start_s: float
    started_at: str
    heartbeat_at: str
    is_released: bool = False
    sealed: dict[str, int] | None = None

    def adopts(self, part: PartName) -> bool:
        """Whether a part is one of the results, not that of a run that had lost its lease."""
        if self.sealed is None or part.epoch >= self.epoch:
            return True
        return part.number <= self.sealed.get(str(part.epoch), 0)

    def to_json(self) -> bytes:
        """The content of its lease file."""
        return json.dumps(asdict(self), indent=2).encode()


def now() -> str:
    """The UTC time, in ISO format."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def age_s(moment: str) -> float:
    """How long ago a time of `now` was, by the clock of this machine."""
    return (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()


def this_process(epoch: int, run_id: str) -> Holder:
    """This process as the holder of a lease, from now on."""
    return Holder(
        epoch=epoch,
        run_id=run_id,
        host=socket.gethostname(),
        pid=os.getpid(),
        process_space=_process_space(),
        process_start_s=_start_s(psutil.Process()),
        started_at=now(),
        heartbeat_at=now(),
    )


def _process_space() -> str:
    """Equal where pids mean the same processes: host names alone do not tell containers apart."""
    space = [socket.gethostname()]
    with suppress(OSError):
        space.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        space.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(space)


def _start_s(process: psutil.Process) -> float:
    """Start of a process since that of the machine: no correction of the clock moves it."""
    return float(process.create_time() - psutil.boot_time())


def is_gone(holder: Holder) -> bool:
    """Whether the holder is dead for certain, its pid perhaps that of another process now."""
    if holder.process_space != _process_space():
        return False
    try:
        process = psutil.Process(holder.pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return True
        return abs(_start_s(process) - holder.process_start_s) > _SAME_START_S
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:
        return False


def describe(uri: str, holder: Holder, expiry_s: float) -> str:
    """Who holds an output, since when, and what to do about it."""
    return (
        f"{uri} is held by run {holder.run_id} on {holder.host} (pid {holder.pid}), which"
        f" started {_ago(holder.started_at)} and was last heard of {_ago(holder.heartbeat_at)}."
        " Wait for it, or stop it; once it is dead, the same command takes over"
        f" {expiry_s:.0f} s after it was last heard of (at once, on its own machine). With"
        " --if-locked skip this is no error."
    )


def _ago(moment: str) -> str:
    seconds = max(0.0, age_s(moment))
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
