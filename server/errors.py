"""Why a request gets no caption: one class a reason, with its HTTP status and code."""

from __future__ import annotations


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
