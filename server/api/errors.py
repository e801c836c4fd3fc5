"""The one shape of every error answer."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from starlette.responses import JSONResponse

from server.errors import ServeError

if TYPE_CHECKING:
    from pydantic import ValidationError
    from starlette.exceptions import HTTPException

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
_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9_\-]{1,64}")


class BadBody(ServeError):
    """A body that does not fit the schema."""

    reason = "invalid"

    def __init__(self, status: int, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.status = status
        self.code = code

    @classmethod
    def of(cls, error: ValidationError, *, prefix: tuple[str, ...] = ()) -> BadBody:
        """The first thing that pydantic found wrong.

        Nothing of the input is repeated but field names, and those only if they look like names:
        values may be huge, private, or no JSON at all (Infinity).
        """
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        kind = first["type"]
        param = ".".join((*prefix, *(_name(part) for part in first["loc"]))) or None
        if kind == "json_invalid":
            return cls(400, "invalid_json", f"{param or 'the body'} is not valid JSON", param)
        if kind == "missing":
            return cls(422, "missing_field", f"{param} is missing", param)
        if kind == "extra_forbidden":
            return cls(422, "unknown_field", f"{param} is no known field", param)
        message = first["msg"].removeprefix("Value error, ")
        if kind.endswith(("_type", "_parsing")):
            return cls(422, "wrong_type", f"{param or 'the body'}: {message}", param)
        return cls(400, "invalid_value", f"{param or 'the body'}: {message}", param)


def _name(part: int | str) -> str:
    text = str(part)
    return text if _PLAIN_NAME.fullmatch(text) else "?"


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
