"""API keys: who may call which route."""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING, Final

from starlette.datastructures import Headers

from server.api.errors import error_response
from server.api.middleware import discard
from server.errors import ServeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from starlette.types import ASGIApp, Receive, Scope, Send

OPEN_PATHS: Final = frozenset({"/", "/docs", "/health", "/health/live", "/health/ready"})
"""What load balancers ask for, and the pages that ask for a key."""
OPEN_PREFIXES: Final = ("/web/", "/docs/")
"""The pages' own files."""


class Unauthorized(ServeError):
    """No key, or none of ours."""

    status = 401
    code = "invalid_api_key"
    reason = "unauthorized"


class Keys:
    """Lets a request in if it bears a key, or asks for what is open to all."""

    def __init__(
        self,
        app: ASGIApp,
        keys: Iterable[str],
        open_paths: frozenset[str],
        on_refusal: Callable[[str], None],
    ) -> None:
        """`on_refusal` is told the reason."""
        self._app = app
        self._digests = [_digest(key.encode()) for key in keys]
        self._open_paths = open_paths
        self._on_refusal = on_refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # The path that the router goes by; a URL put together again would hold the Host header,
        # which the client chooses.
        path = scope.get("path", "")
        is_open = (
            scope["type"] == "lifespan"
            or path in self._open_paths
            or path.startswith(OPEN_PREFIXES)
        )
        # What starts and stops the application has no headers.
        given = "" if is_open else Headers(scope=scope).get("authorization", "")
        if is_open or self._holds(given):
            await self._app(scope, receive, send)
            return
        error = Unauthorized(
            "the header Authorization holds none of this server's keys: it must read Bearer KEY"
            if given
            else "an API key is needed: send the header Authorization: Bearer KEY"
        )
        self._on_refusal(error.reason)
        scope["state"]["record"].error = error.code
        response = error_response(error)
        response.headers["www-authenticate"] = "Bearer"
        response.headers["connection"] = "close"
        if scope["method"] not in ("GET", "HEAD"):
            await discard(receive)
        await response(scope, receive, send)

    def _holds(self, authorization: str) -> bool:
        """Takes the same time whichever key it is, and however much of one was right."""
        scheme, _, key = authorization.partition(" ")
        given = _digest(key.strip().encode("latin-1"))
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        return any(matches) and scheme.lower() == "bearer"


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
