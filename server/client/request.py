"""What goes to the server: the connection's settings, a picture and the fields beside it."""

from __future__ import annotations

import json
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypedDict

import httpx

from rediff_model.network.keys import clean_key
from rediff_model.network.proxies import proxy_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rediff_model.network.proxies import Proxy

DEFAULT_URL: Final = "http://127.0.0.1:8000"
TIMEOUT: Final = httpx.Timeout(600.0, connect=10.0)
"""Of a read: the longest that a server may be told to let a request take."""


class Savable(Protocol):
    """A picture in memory, such as Pillow's `Image`."""

    def save(self, fp: Any, format: str) -> None:
        """Write it as a file of the format."""
        ...


Picture = str | PathLike[str] | bytes | Savable
"""The path of a file, the bytes of one, or a picture in memory."""


class Fields(TypedDict, total=False):
    """Fields of a request, see docs/api.md."""

    prompt: str
    sampling: Mapping[str, object]
    """Settings of the sampler."""
    template: str
    """Fixed text with holes to fill."""
    return_tokens: bool
    alternatives: int
    """So many likeliest tokens of each place."""
    return_diff: bool
    """Of a draft: what changed, in words."""
    return_steps: bool
    timeout_seconds: float
    priority: int


class Connection:
    """Address, key and proxy of a server."""

    def __init__(self, base_url: str, key: str | None) -> None:
        """
        Raises:
            ValueError: the address, the key or the environment's proxy cannot be used.
        """
        try:
            self.url = httpx.URL(base_url)
        except httpx.InvalidURL as error:
            raise ValueError(f"the server's address cannot be used: {error}") from None
        key = clean_key(key or "")
        self.headers = {"authorization": f"Bearer {key}"} if key else {}
        self.proxy: Proxy | None = proxy_of(base_url)

    @property
    def proxy_url(self) -> str | None:
        """Of the proxy, for httpx, which does not look for one itself when it is given this."""
        return None if self.proxy is None else self.proxy.url


def file_of(picture: Picture) -> tuple[str, bytes]:
    """Name and bytes of the file that is sent.

    Raises:
        OSError: the path cannot be read.
    """
    if isinstance(picture, bytes):
        return "picture", picture
    if isinstance(picture, str | PathLike):
        path = Path(picture)
        return path.name, path.read_bytes()
    memory = BytesIO()
    picture.save(memory, "PNG")
    return "picture.png", memory.getvalue()


def form(fields: Mapping[str, object]) -> dict[str, str]:
    """Fields as a form has them."""
    return {name: _text(value) for name, value in fields.items() if value is not None}


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=dict)
