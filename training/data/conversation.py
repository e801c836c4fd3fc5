"""One row of LLaVA-style conversation data, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from training.data.problems import BadRow

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Role = Literal["user", "assistant"]
ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}
IMAGE_TAG = "<image>"


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side said."""

    role: Role
    text: str


@dataclass(frozen=True, slots=True)
class Pair:
    """A wrong segment of an answer and its correction.

    `start` is the character at which `org` begins in its answer, for a segment that occurs more
    than once.
    """

    org: str
    target: str
    start: int | None = None


@dataclass(frozen=True, slots=True)
class AnswerTokens:
    """The tokens of a draft as it was sampled, and those it should have; equally many.

    A draft is not always made of the tokens that the tokenizer would choose for its text.
    """

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    flags: tuple[int, ...]
    """Positions that are corrected."""


@dataclass(frozen=True, slots=True)
class Row:
    """A conversation, its picture and its corrections. `where` is `file:line`."""

    where: str
    turns: tuple[Turn, ...]
    image: str | None = None
    pairs: tuple[Pair, ...] = ()
    tokens: AnswerTokens | None = None
    """Of the only answer, if it is a corrected draft."""
    draft: str = ""
    """A weaker model's answer to the first question, for tokens to be replaced by its."""

    @property
    def size(self) -> int:
        """Characters of text, the measure by which lengths are grouped."""
        return sum(len(turn.text) for turn in self.turns)


def parse_row(value: object, where: str) -> Row:
    """A row from parsed JSON: `conversations`, and optionally `image`, `revise` and `draft`.

    Other keys are ignored. `conversations` holds `{"from": "human" | "gpt", "value": text}`
    (`user` and `assistant` are understood too); `image` is a name or a list of one name;
    `revise` holds `{"org", "target"}`, optionally with `start`; `draft` is what a weaker model
    answers to the first question. A corrected draft, with one answer, has `ids`, `labels` and
    `flags` besides.

    Raises:
        BadRow: malformed, with what was wrong and where.
    """
    if not isinstance(value, dict):
        raise BadRow("malformed", where, f"a row must be an object, got {type(value).__name__}")
    turns = tuple(_turn(item, where) for item in _list(value, "conversations", where))
    if not any(turn.role == "assistant" for turn in turns):
        raise BadRow("malformed", where, "conversations holds no answer")
    pairs = tuple(_pair(item, where) for item in _list(value, "revise", where))
    tokens = _tokens(value, turns, where) if value.keys() >= {"ids", "labels", "flags"} else None
    return Row(where, turns, _image(value, where), pairs, tokens, _draft(value, where))


def _list(value: Mapping[str, Any], key: str, where: str) -> list[Any]:
    items = value.get(key)
    if items is None:
        return []
    if not isinstance(items, list):
        raise BadRow("malformed", where, f"{key} must be a list, got {type(items).__name__}")
    return items


def _turn(item: object, where: str) -> Turn:
    if not isinstance(item, dict) or not isinstance(item.get("value"), str):
        raise BadRow("malformed", where, f"a turn needs from and value, got {_short(item)}")
    speaker = item.get("from")
    if not isinstance(speaker, str) or speaker not in ROLES:
        raise BadRow("malformed", where, f"from must be one of {sorted(ROLES)}, got {speaker!r}")
    return Turn(ROLES[speaker], _text(item["value"], where))


def _pair(item: object, where: str) -> Pair:
    if (
        not isinstance(item, dict)
        or not isinstance(item.get("org"), str)
        or not isinstance(item.get("target"), str)
        or not item["org"].strip()
    ):
        raise BadRow("malformed", where, f"a pair needs org and target, got {_short(item)}")
    start = item.get("start")
    if start is not None and (type(start) is not int or start < 0):
        raise BadRow("malformed", where, f"start must be a position, got {start!r}")
    return Pair(_text(item["org"], where), _text(item["target"], where), start)


def _tokens(value: Mapping[str, Any], turns: Sequence[Turn], where: str) -> AnswerTokens:
    ids, labels, flags = (_list(value, key, where) for key in ("ids", "labels", "flags"))
    numbers = all(type(item) is int and item >= 0 for item in (*ids, *labels, *flags))
    answers = sum(turn.role == "assistant" for turn in turns)
    if not numbers or len(ids) != len(labels) or answers != 1 or not flags:
        raise BadRow("malformed", where, "ids, labels and flags do not fit one corrected answer")
    if max(flags) >= len(ids):
        raise BadRow("malformed", where, f"flag {max(flags)} lies past {len(ids)} tokens")
    return AnswerTokens(tuple(ids), tuple(labels), tuple(flags))


def _draft(value: Mapping[str, Any], where: str) -> str:
    draft = value.get("draft")
    if draft is None:
        return ""
    if not isinstance(draft, str):
        raise BadRow("malformed", where, f"draft must be text, got {_short(draft)}")
    return _text(draft, where).rstrip()


def _text(text: str, where: str) -> str:
    """The text, if it can be written: JSON may hold halves of characters."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRow("malformed", where, f"not text: {error.reason}") from None
    return text


def _image(value: Mapping[str, Any], where: str) -> str | None:
    image = value.get("image")
    if isinstance(image, list) and len(image) == 1:
        image = image[0]
    if image is None:
        return None
    if not isinstance(image, str) or not image:
        raise BadRow("malformed", where, f"image must be one name, got {_short(image)}")
    return image


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
