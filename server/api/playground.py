"""The playground: one static page at `/`, with its files under `/web`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from starlette.routing import Mount, Route

from server.api.static_files import PLAYGROUND_HEADERS, Assets, Page

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import BaseRoute

_WEB: Final = Path(__file__).parent / "web"


def playground_routes() -> list[BaseRoute]:
    """`/` and `/web`, which need no API key: they hold no secret."""

    async def page(request: Request) -> Response:
        return Page(_WEB / "index.html", headers=PLAYGROUND_HEADERS)

    return [
        Route("/", page, methods=["GET"], include_in_schema=False),
        Mount("/web", Assets(_WEB, PLAYGROUND_HEADERS)),
    ]
