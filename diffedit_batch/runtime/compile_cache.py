"""Compiled code shared by workers: one goes ahead and compiles, the others load what it left.

Torch keeps what it compiled by hardware and code, so a file that does not suit is only of no use.
What is loaded is code; whoever can write to the output folder is trusted.
"""

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from diffedit_batch.config import fingerprint
from diffedit_batch.data.storage import TEMPORARY, Storage

FOLDER = "_diffedit/compiled"
PATIENCE_S = 300.0
"""How long others wait for a worker that went ahead and may have died."""

_LOOK_EVERY_S = 1.0


@contextmanager
def shared_compiling(
    storage: Storage, hardware: str, patience_s: float = PATIENCE_S
) -> Iterator[None]:
    """Within it a network is compiled, after other workers or before them.

    Args:
        storage: the output, which all workers see; what was compiled stays there for later runs.
        hardware: name of the device.
        patience_s: how long to wait for the worker that goes ahead.
    """
    import torch

    name = fingerprint([torch.__version__, hardware])
    compiled = f"{FOLDER}/{name}.bin"
    claim, failure = f"{TEMPORARY}/compiling-{name}", f"{TEMPORARY}/not-compiled-{name}"
    is_there = storage.exists(compiled)
    if not is_there and not storage.create(claim, uuid.uuid4().bytes):
        is_there = _wait(storage, compiled, failure, patience_s)
    if is_there:
        torch.compiler.load_cache_artifacts(storage.read(compiled))
    try:
        yield
    except BaseException:
        storage.write(failure, b"")
        raise
    if is_there:
        return
    artifacts = torch.compiler.save_cache_artifacts()
    if artifacts is None:
        storage.write(failure, b"")
    else:
        # By one who waited in vain too, for those who come later.
        storage.write(compiled, artifacts[0])


def _wait(storage: Storage, compiled: str, failure: str, patience_s: float) -> bool:
    """Whether what another worker compiles is there, once it is done or has taken too long."""
    give_up = time.monotonic() + patience_s
    while not storage.exists(compiled):
        if storage.exists(failure) or time.monotonic() > give_up:
            return False
        time.sleep(_LOOK_EVERY_S)
    return True
