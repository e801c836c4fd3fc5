"""What a request to the server can fail with, besides a connection that fails."""

from __future__ import annotations

import time
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    import httpx


HTTP_OK: Final = 200


class BadAnswer(ValueError):
    """The server answered with something that this API does not send."""


class ServerRefused(Exception):
    """The server answered with an error."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str = "",
        param: str | None = None,
        retry_after: float | None = None,
        path: str = "",
    ) -> None:
        super().__init__(message)
        self.status = status
        """HTTP status; 0 of a failure within a stream."""
        self.message = message
        """In the server's words; empty if it gave none."""
        self.code = code
        """One of docs/api.md; empty if the answer is not of this API."""
        self.param = param
        """The field that is wrong."""
        self.retry_after = retry_after
        """Seconds that the server asks to wait."""
        self.path = path
        """The route that was asked."""

    def __str__(self) -> str:
        status = f"status {self.status}" if self.status else "an error"
        words = f": {self.message}" if self.message else f" to {self.path}"
        return f"the server answers with {status}{words}"

    @classmethod
    def from_response(cls, response: httpx.Response) -> Self:
        """The error of an answer that has been read."""
        wait = _seconds_until(response.headers.get("retry-after"))
        try:
            body = response.json()
        except ValueError:
            body = None
        return cls.from_body(body, response.status_code, wait, response.request.url.path)

    @classmethod
    def from_body(
        cls, body: object, status: int = 0, retry_after: float | None = None, path: str = ""
    ) -> Self:
        """The error of a body in the shape of this API; without words if it has another one."""
        error: Any = body.get("error") if isinstance(body, dict) else None
        if not isinstance(error, dict) or "message" not in error:
            return cls(status, "", retry_after=retry_after, path=path)
        message, code = str(error["message"]), str(error.get("code") or "")
        return cls(status, message, code, error.get("param"), retry_after, path)


def checked(response: httpx.Response) -> httpx.Response:
    """The response, which has been read, if it is of status 200.

    Raises:
        ServerRefused: it is not.
    """
    if response.status_code != HTTP_OK:
        raise ServerRefused.from_response(response)
    return response


def _seconds_until(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks to wait, in either of its forms."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, moment.timestamp() - time.time())
