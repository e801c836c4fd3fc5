"""Static pages and their files, with headers that let a page load nothing from elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from starlette.responses import FileResponse
from starlette.staticfiles import StaticFiles

if TYPE_CHECKING:
    from pathlib import Path

    from starlette.responses import Response
    from starlette.types import Receive, Scope, Send


def page_headers(images: str) -> dict[str, str]:
    """Headers of a page and its files; `images` lists the schemes of pictures made in the page."""
    return {
        "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
        f"img-src 'self' {images}; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'",
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        # Files change with the server's version: browsers ask whether theirs is current.
        "cache-control": "no-cache",
    }


PLAYGROUND_HEADERS: Final = page_headers("blob:")
DOCS_HEADERS: Final = page_headers("blob: data:")
"""Swagger UI's style sheet holds its icons as data URLs."""


def _whole(scope: Scope) -> Scope:
    """The request without a range: files are small, and odd ranges are answered in plain text."""
    headers = [(name, value) for name, value in scope["headers"] if name != b"range"]
    return {**scope, "headers": headers}


class Page(FileResponse):
    """A page, always all of it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await super().__call__(_whole(scope), receive, send)


class Assets(StaticFiles):
    """The files of a page."""

    def __init__(self, directory: Path, headers: dict[str, str]) -> None:
        super().__init__(directory=directory)
        self._headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await super().__call__(_whole(scope), receive, send)

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(self._headers)
        return response
