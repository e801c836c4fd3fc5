"""The playground: one static page at `/`, with its files under `/web`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from starlette.responses import FileResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import BaseRoute
    from starlette.types import Receive, Scope, Send

_WEB: Final = Path(__file__).parent / "web"

_HEADERS: Final = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    # Files change with the server's version: browsers ask whether theirs is current.
    "cache-control": "no-cache",
}


def _whole(scope: Scope) -> Scope:
    """The request without a range: files are small, and odd ranges are answered in plain text."""
    headers = [(name, value) for name, value in scope["headers"] if name != b"range"]
    return {**scope, "headers": headers}


class _Page(FileResponse):
    """The page itself, always all of it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await super().__call__(_whole(scope), receive, send)


class _Assets(StaticFiles):
    """Static files that load nothing from elsewhere and are loaded by nobody else."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await super().__call__(_whole(scope), receive, send)

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(_HEADERS)
        return response


def playground_routes() -> list[BaseRoute]:
    """`/` and `/web`, which need no API key: they hold no secret."""

    async def page(request: Request) -> Response:
        return _Page(_WEB / "index.html", headers=_HEADERS)

    return [
        Route("/", page, methods=["GET"], include_in_schema=False),
        Mount("/web", _Assets(directory=_WEB)),
    ]
