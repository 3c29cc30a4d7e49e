"""Log records on stderr: plain, or one JSON object per line for whoever collects them."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import TextIO

from diffedit_batch.redact import redact_tree

logger = logging.getLogger(__name__)

_STANDARD = vars(logging.makeLogRecord({})).keys() | {"message", "asctime"}


class JsonFormatter(logging.Formatter):
    """Timestamp, level, logger, message, exception if there is one, and whatever was given as
    `extra`.
    """

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON."""
        document = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat("T", "milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **{name: value for name, value in vars(record).items() if name not in _STANDARD},
        }
        if record.exc_info:
            document["exception"] = self.formatException(record.exc_info)
        return json.dumps(redact_tree(document), default=str)


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to what is stderr at the moment: a live view puts itself before it."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


def log_error(message: str, exit_code: int) -> None:
    """Log the error that a command ends with."""
    logger.error("%s", message, extra={"exit_code": exit_code})


def set_up(*, as_json: bool) -> None:
    """Send warnings of this process to stderr."""
    handler = _Stderr()
    plain = logging.Formatter("%(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if as_json else plain)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
