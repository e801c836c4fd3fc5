"""Addresses of servers: which are of this machine, and base URLs as a client can use them."""

from __future__ import annotations

import re
import socket
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING, Final
from urllib.parse import SplitResult, urlsplit

if TYPE_CHECKING:
    from ipaddress import IPv4Address

_LOCAL_NAMES: Final = frozenset(
    {"localhost", "localhost.localdomain", "localhost6", "ip6-localhost"}
)
_SECRET: Final = re.compile(r"(?<=//).*@")


class AddressError(ValueError):
    """Text that is no address; the message is one line and does not repeat it."""


def is_local(host: str) -> bool:
    """True if a host name or address is of this machine: loopback or unspecified."""
    name = host.strip("[]").rstrip(".").lower()
    if name in _LOCAL_NAMES or name.endswith(".localhost"):
        return True
    address = _address(name)
    return address is not None and (address.is_loopback or address.is_unspecified)


def without_password(url: str) -> str:
    """The URL with `***` in place of user name and password."""
    return _SECRET.sub("***@", url)


def is_url(text: str) -> bool:
    """True for a URL, also one that was taken for a path and lost a slash; not for C:/x."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text) is not None


def listen_host(text: str) -> str:
    """The host name or address to listen on, without white space and brackets around it.

    Raises:
        AddressError: the text is more than a host, or no host.
    """
    host = text.strip()
    if host == "*":
        raise AddressError("every address is 0.0.0.0, or :: for IPv6")
    if "/" in host:
        raise AddressError("a host has no scheme and no path, such as 127.0.0.1")
    bracketed = re.fullmatch(r"\[([^\[\]]*)\](:.*)?", host)
    bare = bracketed[1] if bracketed else host
    port = bracketed[2] if bracketed else host.count(":") == 1
    if port:
        raise AddressError("the port belongs to --port")
    if not bare or re.search(r"[\s\[\]]", bare):
        raise AddressError("it must be a host name or an address, such as 127.0.0.1")
    _check_name(bare)
    if ":" in bare and _address(bare.partition("%")[0]) is None:
        raise AddressError("it is no IPv6 address")
    return bare


def server_url(text: str) -> str:
    """The base URL of a server, without white space around it and without a slash at its end.

    A server that listens on every address (0.0.0.0 or ::) is asked on loopback.

    Raises:
        AddressError: the text is no URL of an HTTP server.
    """
    text = text.strip()
    if re.search(r"\s", text):
        raise AddressError("white space in an address")
    if not re.match(r"https?://", text, re.IGNORECASE):
        if re.match(r"[a-z][a-z0-9+.-]*://", text, re.IGNORECASE):
            raise AddressError("the scheme must be http or https")
        raise AddressError(f"the scheme is missing; write http://{text or '127.0.0.1:8000'}")
    parts = urlsplit_checked(text)
    if parts.query or parts.fragment or text.endswith(("?", "#")):
        raise AddressError("a base URL has no query (?) and no fragment (#)")
    host = parts.hostname or ""
    _check_name(host)
    authority = parts.netloc
    address = _address(host)
    if address is not None and address.is_unspecified:
        loopback = "[::1]" if isinstance(address, IPv6Address) else "127.0.0.1"
        before, at, _ = authority.rpartition("@")
        port = "" if parts.port is None else f":{parts.port}"
        authority = f"{before}{at}{loopback}{port}"
    return f"{parts.scheme}://{authority}{parts.path.rstrip('/')}"


def urlsplit_checked(url: str) -> SplitResult:
    """The parts of a URL that has a scheme; host and port are valid.

    Raises:
        AddressError: it has no host, or no valid port.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        raise AddressError("brackets are for IPv6 addresses, such as http://[::1]:8000") from None
    authority = parts.netloc.rpartition("@")[2]
    if authority.count(":") > 1 and "[" not in authority:
        raise AddressError("an IPv6 address stands in brackets, such as http://[::1]:8000")
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        raise AddressError("the port must be a number from 1 to 65535")
    if not parts.hostname:
        raise AddressError("the host is missing")
    return parts


def _check_name(host: str) -> None:
    """Raises AddressError for what cannot be looked up, such as an empty part between dots."""
    try:
        # The codec of the standard library, which also does so before a name is looked up.
        host.encode("idna")
    except UnicodeError:
        raise AddressError("it is no host name") from None


def _address(host: str) -> IPv4Address | IPv6Address | None:
    """The address that is written as such, also in the old forms (127.1); None for a name."""
    try:
        address = ip_address(host)
    except ValueError:
        if not re.fullmatch(r"[0-9a-fx.]+", host):
            return None
        try:
            address = ip_address(socket.inet_aton(host))
        except OSError:
            return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address
