"""A whole JSON file as one value."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


class BadJson(ValueError):
    """A file that is not JSON; the message names it."""


def read_json(file: Path) -> Any:
    """The value of a file in UTF-8, with or without a byte order mark.

    Raises:
        BadJson: it is not JSON, too deep, or an object has a key twice.
        OSError: it cannot be read.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"), object_pairs_hook=_once)
    except RecursionError:
        raise BadJson(f"{file}: it is nested too deeply") from None
    except ValueError as error:
        raise BadJson(f"{file}: {error}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (doubled, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {doubled!r} is there twice")
    return found
