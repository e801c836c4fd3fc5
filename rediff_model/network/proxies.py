"""Proxies of the environment: which one a request goes through."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from importlib.util import find_spec
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from rediff_model.network.addresses import (
    AddressError,
    is_local,
    urlsplit_checked,
    without_password,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

_SCHEMES: Final = ("http", "https", "socks5", "socks5h")


class ProxyError(ValueError):
    """A proxy that cannot be used; the message is one line, without its password."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy and where it was named; as a string without its password."""

    url: str = field(repr=False)
    """For an HTTP client, password included."""
    named_by: str
    """The environment variable, or the system's settings."""

    def __str__(self) -> str:
        return f"the proxy {without_password(self.url)} ({self.named_by})"


def proxy_of(url: str) -> Proxy | None:
    """The proxy for requests to a URL; None for this machine and for what NO_PROXY names.

    `http_proxy`, `https_proxy`, `all_proxy` and `no_proxy` are read in small letters first, then in
    capitals; without them the settings of macOS or Windows. NO_PROXY takes names with or without
    `.` or `*.` before them, addresses, networks such as 10.0.0.0/8, each with or without a port.

    Raises:
        ProxyError: the proxy has a wrong scheme or port, or needs a package that is missing.
    """
    target = urlsplit(url)
    host = target.hostname or ""
    if not host or is_local(host):
        return None
    settings = {name: value.strip() for name, value in getproxies().items()}
    port = target.port or {"http": 80, "https": 443}.get(target.scheme)
    if _is_excepted(host, port, settings):
        return None
    for scheme in (target.scheme, "all"):
        if settings.get(scheme):
            return _checked(settings[scheme], _variable(scheme))
    return None


def _checked(value: str, named_by: str) -> Proxy:
    url = value if "://" in value else f"http://{value}"
    shown = f"{named_by}={without_password(url)}"
    try:
        if re.search(r"\s", url):
            raise AddressError("white space in an address")
        parts = urlsplit_checked(url)
    except AddressError as error:
        raise ProxyError(f"{shown}: {error}") from None
    if parts.scheme not in _SCHEMES:
        raise ProxyError(f"{shown}: the scheme of a proxy must be one of {', '.join(_SCHEMES)}")
    if parts.scheme.startswith("socks") and find_spec("socksio") is None:
        raise ProxyError(f"{shown}: this kind of proxy needs a package: pip install socksio")
    return Proxy(url, named_by)


def _variable(scheme: str) -> str:
    """Where the proxy of a scheme stands."""
    names = (f"{scheme}_proxy", f"{scheme.upper()}_PROXY")
    return next((name for name in names if os.environ.get(name)), "the system's settings")


def _is_excepted(host: str, port: int | None, settings: Mapping[str, str]) -> bool:
    """True if requests to a host go directly."""
    if "no" not in settings:
        # What macOS and Windows except.
        return bool(proxy_bypass(host))
    return any(_matches(entry, host, port) for entry in re.split(r"[,\s]+", settings["no"]))


def _matches(entry: str, host: str, port: int | None) -> bool:
    """True if an entry of NO_PROXY names a host."""
    entry = entry.lower().rpartition("://")[2]
    if entry == "*":
        return True
    name, colon, number = entry.rpartition(":")
    if colon and number.isdecimal() and (":" not in name or name.endswith("]")):
        if int(number) != port:
            return False
        entry = name
    entry = entry.strip("[]").removeprefix("*").lstrip(".")
    if not entry:
        return False
    try:
        return ip_address(host) in ip_network(entry, strict=False)
    except ValueError:
        return host == entry or host.endswith(f".{entry}")
