"""The ASGI application around a service."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from server import __version__
from server.api.auth import OPEN_PATHS, Keys
from server.api.docs import docs_routes
from server.api.errors import error_response, http_error_response
from server.api.middleware import BodyLimits, Envelope
from server.api.openai import openai_routes
from server.api.openapi import complete
from server.api.playground import playground_routes
from server.api.request_builder import Orders
from server.api.routes import caption_routes, operation_routes
from server.api.sse import ClientLeft
from server.errors import BadBody, ServeError
from server.images.decode import image_limits
from server.images.fetch import RemotePictures, refuse

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request

    from server.images.fetch import Fetch
    from server.logs import RequestRecord
    from server.service import Service
    from server.settings import Settings

CLIENT_LEFT_STATUS = 499
"""For the log only: nobody reads this answer."""


def create_app(
    service: Service, settings: Settings, trace: Callable[[RequestRecord], None] | None = None
) -> FastAPI:
    """All routes, errors in one shape, bodies within limits. The caller starts the service.

    `trace` is told of every request that has ended.
    """
    app = FastAPI(
        title="rediff-serve",
        version=__version__,
        description="Captions from a refining masked-diffusion model.",
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    orders = Orders(
        service, image_limits(settings), _fetch(settings), settings.max_prompt_characters
    )
    app.include_router(caption_routes(service, orders))
    app.include_router(openai_routes(service, orders))
    told = ("max_image_bytes", "max_image_pixels", "max_image_side", "max_body_bytes")
    app.include_router(operation_routes(service, {name: getattr(settings, name) for name in told}))
    app.routes.extend((*playground_routes(), *docs_routes()))
    app.add_middleware(
        BodyLimits,
        max_bytes=settings.max_body_bytes,
        max_total=settings.max_buffered_bytes,
        timeout=settings.body_timeout,
    )
    keys = (*settings.api_keys, *settings.file_keys())
    open_paths = OPEN_PATHS | ({"/metrics"} if settings.metrics_public else set())
    if keys:
        app.add_middleware(
            Keys,
            keys=keys,
            open_paths=open_paths,
            on_refusal=lambda reason: service.metrics.rejections.labels(reason=reason).inc(),
        )
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            # OpenAI's client in a browser adds a dozen of its own. Which headers a page may send
            # says nothing of which pages may.
            allow_headers=["*"],
            allow_private_network=True,
            expose_headers=["x-request-id", "retry-after", "x-rediff-warning"],
        )
    app.add_middleware(Envelope, trace=trace)
    _add_error_handlers(app)
    complete(app, open_paths if keys else None)
    return app


def _fetch(settings: Settings) -> Fetch:
    if not settings.image_hosts:
        return refuse
    return RemotePictures(
        settings.image_hosts, settings.max_image_bytes, settings.image_fetch_timeout
    )


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(ServeError)
    async def serve_error(request: Request, error: ServeError) -> Response:
        request.state.record.error = error.code
        # Not `request.url`, which is put together from the Host header among others.
        return error_response(error, openai=request.scope["path"].startswith("/v1/"))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        return http_error_response(error)

    @app.exception_handler(RequestValidationError)
    async def validation_error(request: Request, error: RequestValidationError) -> Response:
        return error_response(BadBody(422, "invalid_request", "the request does not fit"))

    @app.exception_handler(ClientLeft)
    async def client_left(request: Request, error: ClientLeft) -> Response:
        return Response(status_code=CLIENT_LEFT_STATUS)
