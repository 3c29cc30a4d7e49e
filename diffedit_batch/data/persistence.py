"""Doing again what may work a little later, and saying clearly what does not.

What may pass is a full disk, a server that is busy, broken or out of reach. It is tried again for a
while, with growing pauses; everything else (no permission, no such bucket) is an error at once.
"""

import errno
import logging
from collections.abc import Callable
from typing import TypeVar

import tenacity

from diffedit_batch.errors import StorageError

logger = logging.getLogger(__name__)

T = TypeVar("T")

_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 10.0

_PASSING = {
    getattr(errno, name)
    for name in (
        *("EAGAIN", "EBUSY", "EDQUOT", "EINTR", "EIO", "EMFILE", "ENFILE", "ENOLCK", "ENOSPC"),
        *("ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "EHOSTDOWN", "EHOSTUNREACH", "ENOBUFS"),
        *("ENETDOWN", "ENETRESET", "ENETUNREACH", "EPIPE", "EREMOTEIO", "ESTALE", "ETIMEDOUT"),
    )
    if hasattr(errno, name)
}
_REMEDIES = {
    errno.ENOSPC: "Make room there",
    errno.EDQUOT: "Make room there, or raise the quota",
    errno.EACCES: "Allow this user to read and write there",
    errno.EROFS: "Choose an output.uri that can be written",
}


def persist(
    what: str,
    action: Callable[[], T],
    *,
    patience_s: float,
    expected: tuple[type[Exception], ...] = (),
) -> T:
    """What an operation on storage returns, tried again while its failure may pass.

    Args:
        what: verb and path, for messages.
        action: the operation.
        patience_s: how long it is tried.
        expected: errors to raise as they come.

    Raises:
        StorageError: it failed; says where, how, and what to do.
    """
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_passing),
        wait=tenacity.wait_exponential_jitter(
            multiplier=_FIRST_PAUSE_S, max=_LONGEST_PAUSE_S, jitter=_FIRST_PAUSE_S
        ),
        stop=tenacity.stop_after_delay(patience_s),
        before_sleep=lambda state: logger.warning(
            "cannot %s: %s; trying again", what, _last_reason(state)
        ),
        reraise=True,
    )
    try:
        return retrying(action)
    except StorageError:
        raise
    except Exception as error:  # the clients of object stores raise classes of their own
        if isinstance(error, expected):
            raise
        number = getattr(error, "errno", None) or 0
        if isinstance(error, PermissionError):  # object stores give no number
            number = errno.EACCES
        remedy = "See that it can be reached" if is_passing(error) else "See to it"
        num_tries = retrying.statistics["attempt_number"]
        often = f" (tried {num_tries} times in {patience_s:.0f} s)" if num_tries > 1 else ""
        raise StorageError(
            f"cannot {what}: {_reason(error)}{often}. {_REMEDIES.get(number, remedy)}; the"
            " same command then continues."
        ) from error


def is_passing(error: BaseException) -> bool:
    """Whether the same operation may succeed a little later."""
    if getattr(error, "errno", None) in _PASSING:
        return True
    # What Python, botocore and aiohttp raise about connections has no base in common.
    words = ("Connect", "Timeout", "HTTPClient", "Payload", "IncompleteRead", "ResponseParser")
    return any(word in kind.__name__ for kind in type(error).__mro__ for word in words)


def _reason(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error or type(error).__name__)


def _last_reason(state: tenacity.RetryCallState) -> str:
    error = state.outcome.exception() if state.outcome else None
    return _reason(error) if error else ""
