"""The OpenAPI document in a browser: Swagger UI at `/docs`, with its files under `/docs/`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from starlette.routing import Mount, Route

from server.api.static_files import DOCS_HEADERS, Assets, Page

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import BaseRoute

_FOLDER: Final = Path(__file__).parent / "swagger"


def docs_routes() -> list[BaseRoute]:
    """`/docs` and `/docs/`, which need no API key: the page asks for one to get the document."""

    async def page(request: Request) -> Response:
        return Page(_FOLDER / "index.html", headers=DOCS_HEADERS)

    return [
        Route("/docs", page, methods=["GET"], include_in_schema=False),
        Mount("/docs", Assets(_FOLDER, DOCS_HEADERS)),
    ]
