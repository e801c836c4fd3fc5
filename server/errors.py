"""Why a request gets no caption: one class a reason, with its HTTP status and code."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pydantic import ValidationError

_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9_\-]{1,64}")


class ServeError(Exception):
    """A refusal or failure whose message may be shown to anybody."""

    status: int = 500
    code: str = "internal_error"
    reason: str = "error"
    """Label in the metrics."""

    def __init__(
        self, message: str, *, param: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        """The field at fault."""
        self.retry_after = retry_after
        """Seconds after which another attempt makes sense."""


class BadSetting(ServeError):
    """A field out of range, or in conflict with another one."""

    status = 400
    code = "invalid_value"
    reason = "invalid"


class QueueFull(ServeError):
    """More requests wait than the server holds."""

    status = 429
    code = "queue_full"
    reason = "queue_full"


class NotReady(ServeError):
    """The model is still loading, the server is stopping, or the engine is dead."""

    status = 503
    code = "not_ready"
    reason = "not_ready"


class Draining(NotReady):
    """The server is stopping."""

    code = "draining"
    reason = "draining"


class EngineDown(NotReady):
    """The engine ended."""

    code = "engine_down"
    reason = "engine_down"


class DeadlineExceeded(ServeError):
    """The request's time is over."""

    status = 504
    code = "deadline_exceeded"
    reason = "deadline"


class RequestFailed(ServeError):
    """Computing this request, or the step it shared, raised."""

    reason = "failed"


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
