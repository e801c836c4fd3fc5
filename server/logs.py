"""Log lines, as text or as JSON, and the record that every request leaves.

A record holds no picture, prompt or caption, and of the URL only which route it met.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from server.request_handle import Caption, Timing

_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_access = logging.getLogger("server.access")


@dataclass(slots=True)
class RequestRecord:
    """What is kept of one request. The envelope makes it, the routes add the caption."""

    request_id: str
    method: str
    headers: Mapping[str, str] = field(repr=False)
    """For the trace context; never logged."""
    began_at: float = field(default_factory=time.time)
    """Seconds since 1970."""
    ended_at: float = 0.0
    route: str | None = None
    """The route's template; None where there is no such route."""
    status: int = 0
    """0 when the client left before the answer."""
    error: str | None = None
    """The code of the error that was answered."""
    caption_at: float | None = None
    """When the caption was there."""
    tokens: int | None = None
    steps: int | None = None
    revisions: int | None = None
    timing: Timing | None = None

    def add(self, caption: Caption) -> None:
        """Take the counts and times of a finished caption."""
        self.caption_at = time.time()
        self.tokens = len(caption.generation.ids)
        self.steps = caption.generation.steps
        self.revisions = caption.generation.revisions
        self.timing = caption.timing

    def fields(self) -> dict[str, Any]:
        """What a log line tells; what is not known is left out."""
        values: dict[str, Any] = {
            "request_id": self.request_id,
            "method": self.method,
            "route": self.route,
            "status": self.status,
            "duration": round(self.ended_at - self.began_at, 6),
            "error": self.error,
            "tokens": self.tokens,
            "steps": self.steps,
            "revisions": self.revisions,
        }
        if self.timing is not None:
            values["timing"] = {name: round(s, 6) for name, s in asdict(self.timing).items()}
        return {name: value for name, value in values.items() if value is not None}


def log_request(record: RequestRecord) -> None:
    """Write the one line of a finished request."""
    if not _access.isEnabledFor(logging.INFO):
        return
    fields = record.fields()
    words = [f"{k}={v}" for k, v in fields.items() if k in ("error", "tokens", "steps")]
    _access.info(
        "%s %s %d %.3f s id=%s",
        record.method,
        record.route or "?",
        record.status,
        record.ended_at - record.began_at,
        " ".join([record.request_id, *words]),
        extra={"fields": fields},
    )


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        fields = getattr(record, "fields", None)
        line |= {"message": "request", **fields} if fields else {"message": record.getMessage()}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure(level: str, form: Literal["text", "json"]) -> None:
    """Send the process's log lines to stderr in one form."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if form == "json" else logging.Formatter(_FORMAT))
    logging.basicConfig(level=level.upper(), handlers=[handler])
