"""What passes through a run: a picture of a data set, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from server.bulk.sentences import full_sentences

CUT_OFF = "length"
"""The finish reason of a caption that was longer than its canvas."""


class BulkError(Exception):
    """The run cannot start or go on; the message is one line."""


@dataclass(frozen=True, slots=True)
class Item:
    """A picture: where it is, and what it is called. Made by the inputs."""

    source: str
    """The file of the picture, or of the shard that holds it."""
    name: str
    """What outputs call it."""
    relative: str
    """Where it is below its root, with / and without the suffix of the file."""
    suffix: str = ""
    """Of the picture's file, with the dot."""
    member: str = ""
    """Which picture of the shard; empty for a file."""
    offset: int = 0
    """First byte in the source."""
    size: int | None = None
    """Bytes; None: the whole file."""
    content: bytes | None = field(default=None, repr=False)
    """The bytes, when the shard cannot be read from the middle."""

    @property
    def identity(self) -> str:
        """The same in every run over the same data, and no other picture's."""
        return f"{self.source}#{self.member}" if self.member else self.source


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A part of the inputs that gives no pictures, or no more of them."""

    source: str
    reason: str


@dataclass(frozen=True, slots=True)
class Captioned:
    """A caption with what outputs tell of it."""

    text: str
    confidence: float
    """Geometric mean of the tokens' probabilities."""
    revisions: int
    steps: int
    finish_reason: str
    warning: str = ""
    """How the caption differs from what was asked; empty: it does not."""

    def row(self, item: Item) -> dict[str, Any]:
        """One row of a table."""
        return {
            "id": item.name,
            "source": item.identity,
            "caption": self.text,
            "confidence": self.confidence,
            "revisions": self.revisions,
            "steps": self.steps,
            "finish_reason": self.finish_reason,
            "warning": self.warning,
        }


@dataclass(frozen=True, slots=True)
class Wording:
    """How a caption is written: `trigger, prepend caption append`."""

    prepend: str = ""
    append: str = ""
    trigger: str = ""
    full_sentences: bool = False
    """Captions that were cut off end at their last full sentence."""

    def around(self, text: str, finish_reason: str) -> str:
        """The text as it is written; only the trigger brings a comma of its own."""
        if self.full_sentences and finish_reason == CUT_OFF:
            text = full_sentences(text)
        lead = f"{self.trigger}, " if self.trigger else ""
        return f"{lead}{self.prepend}{text}{self.append}"
