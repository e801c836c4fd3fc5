"""The elements of a JSON array by their places, the whole ones of a damaged array too."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from training.data.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from training.data.problems import Report

WINDOW = 1 << 14
"""Characters that are decoded at first: a failure costs what was looked at, not the whole file."""

_LITERAL = 16
"""More than the longest literal or escape that the end of a window can cut."""

_BETWEEN = re.compile(r"[ \t\r\n,]*")


def elements(
    data: bytes, path: Path, field: str, report: Report
) -> Iterator[tuple[int, int, int, bytes]]:
    """Offset, length, line and bytes of every element.

    What is not JSON goes to `report`, and the next object goes on that has `field`, as every row
    has: turns of a broken conversation have it not.
    """
    # Latin-1 makes a character of every byte, so positions in the text are those in the file.
    text = data.decode("latin-1")
    decode = _Decoder(text, field)
    at, line, counted = text.index("[") + 1, 1, 0
    while True:
        at = _past_commas(text, at)
        line += text.count("\n", counted, at)
        counted = at
        ended = text[at : at + 1] == "]"
        if ended:
            if _past_commas(text, at + 1) == len(text):
                return
            fault = "the array ends here"
        elif at == len(text):
            fault = "the array has no end"
        else:
            try:
                value, end = decode(at)
            except (ValueError, RecursionError) as error:
                fault = f"not JSON at byte {at}: {getattr(error, 'msg', error)}"
            else:
                if not isinstance(value, list):
                    yield at, end - at, line, data[at:end]
                    at = end
                    continue
                # Of a stray bracket, and then of all rows behind it.
                decode.beware()
                fault = f"a list where a row should be, at byte {at}"
        found, named = _next_row(text, at + 1, decode, field)
        rest = "the rest is lost" if found is None else "left out up to the next whole row"
        report.add(Problem("malformed", f"{path}:{line}", f"{fault}; {rest}"))
        # The first of these names is that of the row which was just reported.
        for place in named if ended else named[1:]:
            line += text.count("\n", counted, place)
            counted = place
            report.add(Problem("malformed", f"{path}:{line}", f"not JSON around byte {place}"))
        if found is None:
            return
        at = found


class _Decoder:
    """Decodes the value at a place of a text.

    From the first failure on it is wary: a row that lacks its end may hold all that follow, so a
    second object with `field` is taken for the sign of it.
    """

    def __init__(self, text: str, field: str) -> None:
        self._text = text
        self._field = field
        self._rows = 0
        self._json = json.JSONDecoder()

    def __call__(self, at: int) -> tuple[Any, int]:
        """The value and its end.

        Raises:
            ValueError, RecursionError: there is none.
        """
        try:
            return self._decode(at)
        except (ValueError, RecursionError):
            self.beware()
            raise

    def beware(self) -> None:
        """Take a second row in a value for a sign of damage from now on."""
        self._json = json.JSONDecoder(object_hook=self._count)

    def _decode(self, at: int) -> tuple[Any, int]:
        size = WINDOW
        while True:
            self._rows = 0
            window = self._text[at : at + size]
            last = at + size >= len(self._text)
            try:
                value, end = self._json.raw_decode(window)
            except json.JSONDecodeError as error:
                cut = error.pos > size - _LITERAL or error.msg.startswith("Unterminated string")
                if last or not cut:
                    raise
            else:
                if last or end < size:
                    return value, at + end
            size *= 8

    def _count(self, value: dict[str, Any]) -> dict[str, Any]:
        self._rows += self._field in value
        if self._rows > 1:
            raise ValueError("it has no end before the next row")
        return value


def _next_row(text: str, start: int, decode: _Decoder, field: str) -> tuple[int | None, list[int]]:
    """Where the next whole object with `field` begins, and where `field` is named before it."""
    named: list[int] = []
    while (name := text.find(f'"{field}"', start)) >= 0:
        while (at := text.find("{", start, name)) >= 0:
            try:
                value, start = decode(at)
            except (ValueError, RecursionError):
                start = at + 1
            else:
                if field in value:
                    return at, named
        named.append(name)
        start = max(start, name + 1)
    return None, named


def _past_commas(text: str, at: int) -> int:
    found = _BETWEEN.match(text, at)
    assert found is not None
    return found.end()
