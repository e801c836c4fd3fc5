"""The one shape of every error answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from starlette.responses import JSONResponse

if TYPE_CHECKING:
    from starlette.exceptions import HTTPException

    from server.errors import ServeError

_TYPES: Final = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "unavailable_error",
    504: "timeout_error",
}
_HTTP: Final = {
    404: ("not_found", "there is no such route"),
    405: ("method_not_allowed", "the route does not take this method"),
}
_IN_MESSAGES: Final = ("prompt", "image")


def error_body(
    status: int, code: str, message: str, param: str | None = None
) -> dict[str, dict[str, Any]]:
    """The error shape."""
    fallback = "server_error" if status >= 500 else "invalid_request_error"
    kind = _TYPES.get(status, fallback)
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_response(error: ServeError, *, openai: bool = False) -> JSONResponse:
    """An error as an answer. OpenAI clients know 400 where we say 422, and send texts and pictures
    in `messages`.
    """
    status = 400 if openai and error.status == 422 else error.status
    param = "messages" if openai and error.param in _IN_MESSAGES else error.param
    headers = {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
    body = error_body(status, error.code, error.message, param)
    return JSONResponse(body, status, headers)


def http_error_response(error: HTTPException) -> JSONResponse:
    """A refusal of the framework: no route, wrong method, unreadable form."""
    code, message = _HTTP.get(error.status_code, ("invalid_request", "the request is malformed"))
    body = error_body(error.status_code, code, message)
    return JSONResponse(body, error.status_code, error.headers)
