"""The ASGI application around a service."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from server import __version__
from server.api.errors import BadBody, error_response, http_error_response
from server.api.images import ImageLimits
from server.api.middleware import BodyLimits, Envelope
from server.api.openai import openai_routes
from server.api.openapi import add_bodies
from server.api.orders import Orders
from server.api.routes import caption_routes, operation_routes
from server.api.streaming import ClientLeft
from server.errors import ServeError

if TYPE_CHECKING:
    from starlette.requests import Request

    from server.service import Service
    from server.settings import Settings

CLIENT_LEFT_STATUS = 499
"""For the log only: nobody reads this answer."""


def create_app(service: Service, settings: Settings) -> FastAPI:
    """All routes, errors in one shape, bodies within limits. The caller starts the service."""
    app = FastAPI(
        title="rediff-serve",
        version=__version__,
        description="Captions from a refining masked-diffusion model.",
        redirect_slashes=False,
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    limits = ImageLimits(
        settings.max_image_bytes, settings.max_image_pixels, settings.max_image_side
    )
    orders = Orders(service, limits, settings.max_prompt_characters)
    app.include_router(caption_routes(service, orders))
    app.include_router(openai_routes(service, orders))
    app.include_router(operation_routes(service))
    app.add_middleware(
        BodyLimits,
        max_bytes=settings.max_body_bytes,
        max_total=settings.max_buffered_bytes,
        timeout=settings.body_timeout,
    )
    app.add_middleware(Envelope)
    _add_error_handlers(app)
    add_bodies(app)
    return app


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(ServeError)
    async def serve_error(request: Request, error: ServeError) -> Response:
        return error_response(error, openai=request.url.path.startswith("/v1/"))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        return http_error_response(error)

    @app.exception_handler(RequestValidationError)
    async def validation_error(request: Request, error: RequestValidationError) -> Response:
        return error_response(BadBody(422, "invalid_request", "the request does not fit"))

    @app.exception_handler(ClientLeft)
    async def client_left(request: Request, error: ClientLeft) -> Response:
        return Response(status_code=CLIENT_LEFT_STATUS)
