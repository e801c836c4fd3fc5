"""Pictures from other hosts: only from named ones, and never from inside one's own network."""

from __future__ import annotations

import io
import ipaddress
import re
import socket
import ssl
import time
from http.client import HTTPException, HTTPResponse
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import urlsplit

from rediff_model.files.image_formats.names import FORMATS
from server.errors import BadBody

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from _typeshed import WriteableBuffer

    Resolve = Callable[[str], Sequence[str]]
    """The addresses of a host name."""
    Connect = Callable[[str, str, float], socket.socket]
    """A connection to an address, for a host name, within seconds; encrypted and verified."""

PORT: Final = 443
_CHUNK: Final = 2**16
_ACCEPTED: Final = ", ".join(f"image/{name.lower()}" for name in FORMATS)
# No white space, no control, no backslash: parsers disagree about them.
_PLAIN_URL: Final = re.compile(r"[!-\[\]-~]{1,2048}")
_HOST: Final = re.compile(r"(?=.{1,253}$)([a-z0-9]([a-z0-9\-]*[a-z0-9])?\.)+[a-z0-9\-]*[a-z0-9]")
_UNICAST: Final = ipaddress.ip_network("2000::/3")
"""The only IPv6 addresses that are handed out to hosts of the internet."""


class Fetch(Protocol):
    """Gets the bytes behind a URL that is no data URL."""

    def __call__(self, url: str, param: str) -> bytes:
        """Runs in a worker thread. Raises BadBody, which names `param`."""
        ...


def refuse(url: str, param: str) -> bytes:
    """The default: nothing is fetched."""
    raise BadBody(400, "url_not_allowed", "remote pictures are off: use a data URL", param)


class RemotePictures:
    """Fetches pictures by https from an allowlist of hosts.

    A host is resolved once, each of its addresses must be a public one, and the connection goes to
    an address that was checked. Redirects are not followed, proxies not used. A host may be
    `*.example.org`, which is every host below example.org and not itself.
    """

    def __init__(
        self,
        hosts: Sequence[str],
        max_bytes: int,
        timeout: float,
        resolve: Resolve | None = None,
        connect: Connect | None = None,
    ) -> None:
        """`timeout` is in seconds and for everything after the resolution."""
        self._names = frozenset(host for host in hosts if not host.startswith("*."))
        self._suffixes = tuple(host.removeprefix("*") for host in hosts if host.startswith("*."))
        self._max_bytes = max_bytes
        self._timeout = timeout
        self._resolve = resolve or _resolve
        self._connect = connect or _connect

    def __call__(self, url: str, param: str) -> bytes:
        """The bytes of a picture.

        Raises:
            BadBody: 400 not allowed or not to be had, 413 too large.
        """
        host, target = self._checked(url, param)
        try:
            addresses = self._resolve(host)
        except (OSError, UnicodeError):
            raise _unreachable(param) from None
        if not addresses or not all(is_public(address) for address in addresses):
            raise BadBody(400, "url_not_allowed", "the URL's host has no public address", param)
        ends_at = time.monotonic() + self._timeout
        try:
            with self._reached(addresses, host, ends_at) as connection:
                return self._get(_Timed(connection, ends_at), host, target, param)
        except (OSError, HTTPException, ValueError):
            raise _unreachable(param) from None

    def _reached(self, addresses: Sequence[str], host: str, ends_at: float) -> socket.socket:
        """A connection to the first address that takes one."""
        for address in addresses[:-1]:
            try:
                return self._connect(address, host, _left(ends_at))
            except OSError:
                continue
        return self._connect(addresses[-1], host, _left(ends_at))

    def _checked(self, url: str, param: str) -> tuple[str, str]:
        """The host and the request target of a URL that may be fetched."""
        refused = BadBody(400, "url_not_allowed", "the URL is not one that may be fetched", param)
        if not _PLAIN_URL.fullmatch(url):
            raise refused
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").lower(), parts.port
        except ValueError:
            raise refused from None
        authority = host if port is None else f"{host}:{port}"
        # The authority must be the host and nothing else: no user, no brackets, no odd port.
        if parts.scheme != "https" or parts.netloc.lower() != authority or port not in (None, PORT):
            raise refused
        if not _HOST.fullmatch(host) or not self._listed(host):
            raise refused
        return host, (parts.path or "/") + (f"?{parts.query}" if parts.query else "")

    def _listed(self, host: str) -> bool:
        return host in self._names or host.endswith(self._suffixes)

    def _get(self, connection: _Timed, host: str, target: str, param: str) -> bytes:
        connection.send(
            f"GET {target} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: rediff-serve\r\n"
            f"Accept: {_ACCEPTED}\r\nAccept-Encoding: identity\r\n"
            "Connection: close\r\n\r\n"
        )
        # The response reads from whatever has `makefile`.
        with HTTPResponse(connection) as response:  # type: ignore[arg-type]
            response.begin()
            if response.status != 200:
                raise _unreachable(param)
            content = bytearray()
            while chunk := response.read(_CHUNK):
                content += chunk
                if len(content) > self._max_bytes:
                    message = f"the picture is above the limit of {self._max_bytes} bytes"
                    raise BadBody(413, "image_too_large", message, param)
            if response.length:
                # The connection ended before all that was announced had come.
                raise _unreachable(param)
        return bytes(content)


def is_public(address: str) -> bool:
    """Whether an address is one of the internet, and leads to no other inside of it."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    # 6to4 and Teredo addresses carry an IPv4 address to which they lead; so do mapped and
    # translated ones, which are no unicast addresses.
    if isinstance(ip, ipaddress.IPv6Address) and (
        ip not in _UNICAST or ip.sixtofour is not None or ip.teredo is not None
    ):
        return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


class _Timed(io.RawIOBase):
    """A connection of which all reads together end in time, however slowly bytes drip."""

    def __init__(self, connection: socket.socket, ends_at: float) -> None:
        super().__init__()
        self._connection = connection
        self._ends_at = ends_at

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def send(self, text: str) -> None:
        self._hurry()
        self._connection.sendall(text.encode("ascii"))

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        self._hurry()
        return self._connection.recv_into(buffer)

    def _hurry(self) -> None:
        self._connection.settimeout(_left(self._ends_at))


def _left(ends_at: float) -> float:
    """Seconds that are left, above 0; raises TimeoutError when none are."""
    left = ends_at - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _resolve(host: str) -> list[str]:
    found = socket.getaddrinfo(host, PORT, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


def _connect(address: str, host: str, timeout: float) -> socket.socket:
    connection = socket.create_connection((address, PORT), timeout)
    try:
        return ssl.create_default_context().wrap_socket(connection, server_hostname=host)
    except BaseException:
        connection.close()
        raise


def _unreachable(param: str) -> BadBody:
    return BadBody(400, "image_unreachable", "the picture could not be fetched", param)
