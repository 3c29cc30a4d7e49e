"""A server that speaks S3 (moto's), and breaks on request."""

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

BUCKET = "bucket"


@dataclass
class Fault:
    """What happens to some requests.

    Attributes:
        request: regular expression on `METHOD /path`.
        times: how many requests it happens to.
        status: answered instead of the truth; 0 lets the request through.
        is_after: the request is carried out first, and only its answer replaced.
        delay_s: how long the answer takes.
    """

    request: str
    times: int
    status: int = 0
    is_after: bool = False
    delay_s: float = 0.0


class _Quiet(WSGIRequestHandler):
    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Say nothing: failing tests would drown in it."""


class S3Server:
    """The server, and how to reach it.

    Attributes:
        environment: variables that make botocore talk to it, without attempts of its own.
        faults: those that are to come.
        requests: how often each `METHOD /path` was asked for.
    """

    def __init__(self) -> None:
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._server = make_server(
            "127.0.0.1", 0, self._answer, threaded=True, request_handler=_Quiet
        )
        self._lock = threading.Lock()
        self.faults: list[Fault] = []
        self.requests: Counter[str] = Counter()
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._server.server_port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",
        }

    @contextmanager
    def running(self) -> Iterator["S3Server"]:
        thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            thread.join()
            self._server.server_close()

    def count(self, request: str) -> int:
        """How many requests there were whose `METHOD /path` begins like a regular expression."""
        return sum(n for one, n in self.requests.items() if re.match(request, one))

    def _answer(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        request = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}"
        with self._lock:
            self.requests[request] += 1
            fault = next(
                (f for f in self.faults if f.times and re.search(f.request, request)), None
            )
            if fault is not None:
                fault.times -= 1
        if fault is None:
            return self._moto(environ, start_response)  # type: ignore[no-any-return]
        time.sleep(fault.delay_s)
        if not fault.status:
            return self._moto(environ, start_response)  # type: ignore[no-any-return]
        if fault.is_after:
            list(self._moto(environ, lambda *_: None))
        elif environ.get("CONTENT_LENGTH"):
            environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
        code = {503: "SlowDown", 403: "AccessDenied"}.get(fault.status, "InternalError")
        body = f"<Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
        headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
        start_response(f"{fault.status} {HTTPStatus(fault.status).phrase}", headers)
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else body]
