"""Images on web servers, fetched from public addresses only.

A URL of a manifest is a request that comes from inside our network, where much is reachable that
the author of the manifest could not reach: other services, cloud metadata, this machine. So every
name is resolved here, each address it stands for is looked at, and one of those very addresses is
dialled; each redirect goes through the same. There are no proxies, cookies or stored passwords.
"""

import http.client
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote, urljoin, urlsplit

from diffedit_batch.errors import RowError
from diffedit_batch.redact import has_credentials

SCHEMES = ("http", "https")

_MAX_REDIRECTS = 3
_SILENCE_S = 20.0
_TOTAL_S = 120.0
_CHUNK = 1 << 16
_REDIRECTS = (301, 302, 303, 307, 308)
_INSIDE = [ipaddress.ip_network(text) for text in ("168.63.129.16/32", "192.0.0.0/24")]
"""Azure's platform service, which looks public; what Oracle's uses, global to some Pythons."""
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def fetch(url: str, max_bytes: int) -> bytes:
    """The bytes behind a URL.

    Raises:
        RowError: stage `load`; they cannot be had, are too many, or come from a place that is not
            public.
    """
    with _get(url) as response:
        data = bytearray()
        if (response.length or 0) <= max_bytes:
            while len(data) <= max_bytes and (chunk := response.read(_CHUNK)):
                data += chunk
        if len(data) > max_bytes or (response.length or 0) > max_bytes:
            raise RowError(
                "load", "ImageTooLarge", f"{url!r} is more than input.max_bytes {max_bytes:,}"
            )
        if response.length:
            raise RowError("load", "ImageUnreadable", f"{url!r}: the answer ended early")
        return bytes(data)


def stamp(url: str) -> str | None:
    """Size and version of what is behind a URL; None where the server names no version.

    Raises:
        RowError: as `fetch`.
    """
    with _get(url) as response:
        version = response.getheader("ETag") or response.getheader("Last-Modified")
        return f"{response.length}:{version}" if version else None


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the internet at large: not to this machine, its network, a
    group of machines or a cloud's platform, nor written as an IPv6 address that stands for those.
    """
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped or ip.sixtofour:
            return is_public(str(ip.ipv4_mapped or ip.sixtofour))
        if ip in _NAT64:
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        if ip.teredo or ip.is_site_local:
            return False
    if ip.is_multicast or ip.is_unspecified or ip.is_reserved:
        return False
    return ip.is_global and not any(ip in network for network in _INSIDE)


class _Connection(http.client.HTTPConnection):
    def connect(self) -> None:
        self.sock = _dial(self.host, self.port)


class _TlsConnection(http.client.HTTPSConnection):
    def connect(self) -> None:
        context = ssl.create_default_context()
        self.sock = context.wrap_socket(_dial(self.host, self.port), server_hostname=self.host)


def _dial(host: str, port: int) -> socket.socket:
    """A connection to one of the addresses a name stands for, if all of them are public."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for *_, address in found:
        if not is_public(str(address[0])):
            raise RowError(
                "load",
                "AddressRefused",
                f"{host!r} is {address[0]}, which is not on the public internet; images on machines"
                " of your own are read through input.image_root or an object store",
            )
    failure = OSError(f"{host!r} has no address")
    for family, kind, protocol, _, address in found:
        connection = socket.socket(family, kind, protocol)
        connection.settimeout(_SILENCE_S)
        try:
            connection.connect(address)
        except OSError as error:
            connection.close()
            failure = error
        else:
            return connection
    raise failure


@contextmanager
def _get(url: str) -> Iterator[http.client.HTTPResponse]:
    """The answer to a GET, after redirects."""
    first = url
    try:
        for _ in range(_MAX_REDIRECTS + 1):
            with _answer(url) as response:
                if response.status not in _REDIRECTS:
                    yield _checked(response, first)
                    return
                target = urljoin(url, response.getheader("Location") or "")
            if url.startswith("https:") and not target.startswith("https:"):
                raise RowError("load", "AddressRefused", f"{url!r} leads away from https")
            url = target
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = str(error) or type(error).__name__
        raise RowError("load", "ImageUnreadable", f"{first!r}: {reason}") from error
    raise RowError("load", "ImageUnreadable", f"{first!r}: more than {_MAX_REDIRECTS} redirects")


@contextmanager
def _answer(url: str) -> Iterator[http.client.HTTPResponse]:
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES or not parts.hostname or has_credentials(url):
        raise RowError("load", "AddressRefused", f"{url!r} is no plain http or https address")
    connect = _TlsConnection if parts.scheme == "https" else _Connection
    connection = connect(parts.hostname, parts.port)
    is_late = threading.Event()

    def hang_up() -> None:
        is_late.set()
        if connection.sock is not None:
            # Not the shutdown of an SSL socket, which is not meant for use from another thread.
            socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)

    # Timeouts of sockets are about silence: a server that sends a byte now and then never ends.
    timer = threading.Timer(_TOTAL_S, hang_up)
    timer.daemon = True
    timer.start()
    try:
        target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~")
        query = quote(parts.query, safe="/%:@!$&'()*+,;=~?")
        headers = {"Accept": "image/*", "Accept-Encoding": "identity", "Connection": "close"}
        connection.request("GET", f"{target}?{query}" if query else target, headers=headers)
        with connection.getresponse() as response:
            yield response
    except (OSError, http.client.HTTPException, ValueError):
        if is_late.is_set():
            raise TimeoutError(f"took more than {_TOTAL_S:.0f} s") from None
        raise
    finally:
        timer.cancel()
        connection.close()


def _checked(response: http.client.HTTPResponse, url: str) -> http.client.HTTPResponse:
    if response.status in (404, 410):
        raise RowError("load", "ImageNotFound", f"no file {url!r} ({response.status})")
    if response.status != 200:
        raise OSError(f"the server answers {response.status} {response.reason}")
    return response
