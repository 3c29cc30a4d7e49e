import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from diffedit_batch.data import web
from diffedit_batch.errors import RowError

Answer = Callable[[BaseHTTPRequestHandler], None]


class Server:
    """A web server on this machine that counts connections; answers by path."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.requests: list[tuple[str, str]] = []
        self.headers: dict[str, str] = {}
        self.num_connections = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests.append((self.command, self.path))
                outer.headers = dict(self.headers.items())
                outer.answers[self.path](self)

            do_POST = do_HEAD = do_GET

            def log_message(self, *arguments: object) -> None:
                pass

        class Listener(ThreadingHTTPServer):
            def get_request(self) -> tuple[socket.socket, object]:
                outer.num_connections += 1
                return super().get_request()

        self.listener = Listener(("127.0.0.1", 0), Handler)
        self.port = self.listener.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def gives(self, path: str, data: bytes, status: int = 200, **headers: str) -> str:
        def answer(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(status)
            for name, value in {"Content_Length": str(len(data)), **headers}.items():
                handler.send_header(name.replace("_", "-"), value)
            handler.end_headers()
            handler.wfile.write(data)

        self.answers[path] = answer
        return self.url + path

    def leads(self, path: str, target: str, status: int = 302) -> str:
        return self.gives(path, b"", status, Location=target)


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    thread = threading.Thread(target=server.listener.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.listener.shutdown()
        server.listener.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(Server()) as running:
        yield running


@pytest.fixture
def open_door(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the server under test pass for one on the internet, and nothing else."""
    is_public = web.is_public
    monkeypatch.setattr(web, "is_public", lambda a: a == "127.0.0.1" or is_public(a))


def refusal(url: str, max_bytes: int = 1_000) -> tuple[str, str, str]:
    with pytest.raises(RowError) as caught:
        web.fetch(url, max_bytes)
    return caught.value.stage, caught.value.kind, str(caught.value)


def name_that_is(monkeypatch: pytest.MonkeyPatch, **addresses: list[str]) -> list[str]:
    """Make names mean addresses, one after the other; returns the names asked for."""
    asked: list[str] = []
    real = socket.getaddrinfo

    def resolve(host: str, port: int, **more: object) -> object:
        asked.append(host)
        if host in addresses:
            answers = addresses[host]
            host = answers.pop(0) if len(answers) > 1 else answers[0]
        return real(host, port, type=socket.SOCK_STREAM)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return asked


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.8.8.8",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "100.100.100.200",
        "192.0.0.192",
        "168.63.129.16",
        "0.0.0.0",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "198.18.0.1",
        "::",
        "::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "::ffff:168.63.129.16",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
        "fe80::1",
        "fe80::1%lo",
        "fc00::1",
        "fd00:ec2::254",
        "fec0::1",
        "ff02::1",
        "2001:db8::1",
    ],
)
def test_addresses_inside_are_not_public(address: str) -> None:
    assert not web.is_public(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert web.is_public(address)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "127.1", "0"])
def test_this_machine_is_refused_and_sees_no_connection(server: Server, host: str) -> None:
    server.gives("/a.png", b"secret")
    stage, kind, message = refusal(f"http://{host}:{server.port}/a.png")
    assert (stage, kind) == ("load", "AddressRefused")
    assert "not on the public internet" in message
    assert server.num_connections == 0


def test_a_name_that_is_this_machine_is_refused(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    name_that_is(monkeypatch, **{"images.example": ["127.0.0.1"]})
    url = f"http://images.example:{server.port}/a.png"
    assert refusal(url)[1] == "AddressRefused"
    assert server.num_connections == 0


def test_a_name_is_resolved_once_and_what_was_checked_is_dialled(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: a public address for whoever checks, this machine for whoever connects."""
    asked = name_that_is(monkeypatch, **{"rebind.example": ["192.88.99.9", "127.0.0.1"]})
    dialled: list[object] = []

    class Socket(socket.socket):
        def connect(self, address: object) -> None:
            dialled.append(address)
            raise ConnectionRefusedError("nobody there")

    monkeypatch.setattr(socket, "socket", Socket)
    monkeypatch.setattr(web, "is_public", lambda address: address == "192.88.99.9")
    assert refusal(f"http://rebind.example:{server.port}/")[1] == "ImageUnreadable"
    assert asked == ["rebind.example"]
    assert dialled == [("192.88.99.9", server.port)]


@pytest.mark.usefixtures("open_door")
def test_a_name_with_one_address_inside_is_refused(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, server.port))
        for address in ("127.0.0.1", "10.0.0.1")
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
    assert refusal(f"http://both.example:{server.port}/")[1] == "AddressRefused"
    assert server.num_connections == 0


@pytest.mark.usefixtures("open_door")
def test_a_picture_is_fetched_by_a_bare_get(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    url = server.gives("/a%20b/%C3%BC.png?size=5&x=1", b"bytes", Set_Cookie="a=b")
    assert web.fetch(f"{server.url}/a b/ü.png?size=5&x=1", 5) == b"bytes"
    assert web.fetch(f"{url}#fragment", 5) == b"bytes"
    assert server.requests == [("GET", "/a%20b/%C3%BC.png?size=5&x=1")] * 2
    assert not {"Cookie", "Authorization", "Referer"} & server.headers.keys()


@pytest.mark.usefixtures("open_door")
def test_redirects_are_followed_and_counted(server: Server) -> None:
    server.gives("/end", b"bytes")
    for number, target in enumerate(["/end", "/0", "/1", "/2"]):
        server.leads(f"/{number}", target, (301, 302, 307, 308)[number])
    assert web.fetch(f"{server.url}/2", 100) == b"bytes"
    assert "more than 3 redirects" in refusal(f"{server.url}/3")[2]


@pytest.mark.usefixtures("open_door")
@pytest.mark.parametrize(
    "target",
    [
        "http://127.0.0.2:{port}/secret",
        "http://localhost:{port}/secret",
        "http://[::ffff:127.0.0.2]:{port}/secret",
        "http://169.254.169.254/latest/meta-data/",
        "//10.0.0.1/",
        "file:///etc/passwd",
        "ftp://127.0.0.1/a",
        "http://user:word@127.0.0.1:{port}/secret",
    ],
)
def test_a_redirect_is_checked_like_the_first_address(
    server: Server, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    name_that_is(monkeypatch, localhost=["127.0.0.3"])
    url = server.leads("/a.png", target.format(port=server.port))
    assert refusal(url)[1] == "AddressRefused"
    assert server.num_connections == 1


@pytest.mark.usefixtures("open_door")
def test_what_is_too_large_is_not_read_to_its_end(server: Server) -> None:
    url = server.gives("/told", b"x" * 1_001)
    assert refusal(url)[1] == "ImageTooLarge"
    assert web.fetch(url, 1_001) == b"x" * 1_001

    sent = 0

    def endless(handler: BaseHTTPRequestHandler) -> None:
        nonlocal sent
        handler.send_response(200)
        handler.end_headers()
        with suppress(OSError):
            while True:
                sent += handler.wfile.write(b"x" * 10_000)

    server.answers["/untold"] = endless
    assert refusal(f"{server.url}/untold")[1] == "ImageTooLarge"
    assert sent < 50_000_000


@pytest.mark.usefixtures("open_door")
def test_answers_that_are_no_picture_have_their_reason(server: Server) -> None:
    assert refusal(server.gives("/404", b"", 404))[1] == "ImageNotFound"
    assert "answers 503" in refusal(server.gives("/503", b"", 503))[2]
    assert "answers 206" in refusal(server.gives("/206", b"", 206))[2]
    short = server.gives("/short", b"four", Content_Length="5")
    assert "ended early" in refusal(short)[2]
    assert refusal("http://127.0.0.1:99999/")[1] == "ImageUnreadable"
    assert refusal("http://[127.0.0.1/")[1] == "ImageUnreadable"
    for url in ("http:///a.png", "http://u:p@127.0.0.1/a.png", "gopher://127.0.0.1/"):
        assert refusal(url)[1] == "AddressRefused"


@pytest.mark.usefixtures("open_door")
def test_a_server_that_drips_is_cut_off(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_TOTAL_S", 0.5)
    stop = threading.Event()

    def drip(handler: BaseHTTPRequestHandler) -> None:
        with suppress(OSError):
            while not stop.is_set():
                handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Header: never ends"[:1])
                time.sleep(0.05)

    server.answers["/drip"] = drip
    assert "took more than" in refusal(f"{server.url}/drip")[2]
    stop.set()


@pytest.mark.usefixtures("open_door")
def test_a_server_that_says_nothing_is_left(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "_SILENCE_S", 0.2)
    stop = threading.Event()

    def wait(handler: BaseHTTPRequestHandler) -> None:
        stop.wait(20)
        handler.close_connection = True

    server.answers["/"] = wait
    assert "timed out" in refusal(f"{server.url}/")[2]
    stop.set()


@pytest.mark.usefixtures("open_door")
def test_a_stamp_changes_with_what_the_server_says(server: Server) -> None:
    url = server.gives("/a", b"12345", ETag='"v1"')
    assert web.stamp(url) == '5:"v1"'
    server.gives("/a", b"12345", Last_Modified="Mon, 01 Jan 2024 00:00:00 GMT")
    assert web.stamp(url) == "5:Mon, 01 Jan 2024 00:00:00 GMT"
    server.gives("/a", b"12345")
    assert web.stamp(url) is None
    assert {command for command, _ in server.requests} == {"GET"}


@pytest.mark.usefixtures("open_door")
def test_certificates_are_checked_for_the_name_that_was_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    options = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=images.example"
    more = "-addext subjectAltName=DNS:images.example"
    try:
        subprocess.run(
            ["openssl", *options.split(), *more.split(), "-keyout", key, "-out", certificate],
            check=True,
            capture_output=True,
        )
    except FileNotFoundError:
        pytest.skip("needs openssl to make a certificate")
    secure = Server()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    secure.listener.socket = context.wrap_socket(secure.listener.socket, server_side=True)
    secure.listener.handle_error = lambda *_: None  # type: ignore[method-assign]
    with serving(secure):
        secure.gives("/a.png", b"bytes")
        secure.leads("/away", f"http://images.example:{secure.port}/a.png")
        names = {"images.example": ["127.0.0.1"], "other.example": ["127.0.0.1"]}
        name_that_is(monkeypatch, **names)
        url = f"https://images.example:{secure.port}"
        assert "certificate verify failed" in refusal(f"{url}/a.png")[2]
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert web.fetch(f"{url}/a.png", 5) == b"bytes"
        other = f"https://other.example:{secure.port}/a.png"
        assert "certificate verify failed" in refusal(other)[2]
        assert "leads away from https" in refusal(f"{url}/away")[2]
