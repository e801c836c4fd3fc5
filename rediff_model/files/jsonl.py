"""JSON lines: one reader and writer for data sets, journals and records."""

from __future__ import annotations

import codecs
import json
import os
from typing import TYPE_CHECKING, BinaryIO, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_LINE: Final = 2**26
"""Bytes of a line at most. A file without line ends is not read into memory."""

_UTF16: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_BLOCK: Final = 2**16
_ESCAPED: Final = str.maketrans({end: f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"})


class BadLine(ValueError):
    """A line that is not JSON; the message names file and line."""


class Line(NamedTuple):
    """A line that is not blank."""

    number: int
    """From 1."""
    offset: int
    """Of its first byte in the file."""
    data: bytes
    """With its end. Of a line above `MAX_LINE` the first `MAX_LINE + 1` bytes."""


def lines(stream: BinaryIO) -> Iterator[Line]:
    r"""Split a file at line feeds, from its beginning; blank lines are left out.

    Other line ends, such as U+2028, are part of a line. Of a UTF-16 file only the first line is
    given, for `parse` to refuse.
    """
    stream.seek(0)
    offset = number = 0
    while data := stream.readline(MAX_LINE + 1):
        number += 1
        length = len(data)
        while length > MAX_LINE and not data.endswith(b"\n"):
            rest = stream.readline(_BLOCK)
            length += len(rest)
            if not rest or rest.endswith(b"\n"):
                break
        if data.removeprefix(codecs.BOM_UTF8).strip():
            yield Line(number, offset, data)
        if number == 1 and data.startswith(_UTF16):
            return
        offset += length


def parse(data: bytes) -> object:
    """Parse the JSON of a line, with or without a byte order mark.

    Raises:
        ValueError: it is not JSON in UTF-8, too deep, or above `MAX_LINE` bytes; says why.
    """
    if data.startswith(_UTF16):
        raise ValueError("it is UTF-16, expected UTF-8")
    if len(data) > MAX_LINE:
        raise ValueError(f"it is above the limit of {MAX_LINE} bytes")
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        if b"\0" in data:
            raise ValueError("not JSON: it holds NUL bytes") from None
        reason = error.msg.removesuffix(" at")
        raise ValueError(f"not JSON: {reason} at character {error.pos}") from None
    except RecursionError:
        raise ValueError("not JSON: nested too deeply") from None


def dump(value: object) -> bytes:
    """Write a value as one line of UTF-8.

    Characters that other readers take for line ends (U+0085, U+2028, U+2029) are escaped.

    Raises:
        UnicodeEncodeError: it holds a lone surrogate.
    """
    return json.dumps(value, ensure_ascii=False).translate(_ESCAPED).encode() + b"\n"


def read(path: Path) -> Iterator[tuple[int, object]]:
    """Yield line number and value of every line that is not blank.

    Raises:
        BadLine: a line is not JSON.
        OSError: the file cannot be read.
    """
    with path.open("rb") as stream:
        for line in lines(stream):
            try:
                value = parse(line.data)
            except ValueError as error:
                raise BadLine(f"{path}:{line.number}: {error}") from None
            yield line.number, value


def cut_torn_line(path: Path) -> None:
    """Remove what a killed process wrote behind the last line feed, if there is such a file."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        data = b""
        while end and b"\n" not in data:
            start = max(0, end - _BLOCK)
            file.seek(start)
            data = file.read(end - start)
            end = start
        file.truncate(end + data.rfind(b"\n") + 1)
