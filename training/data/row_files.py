"""Rows of a data set, checked once when it is opened and read again when they are needed.

Only the place of a row is kept in memory. JSON arrays, JSON lines and the `.json` members of tar
shards are understood.
"""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from rediff_model.files import jsonl
from rediff_model.files.image_formats.names import SUFFIXES
from training.data.archive import members
from training.data.conversation import parse_row
from training.data.json_array import elements
from training.data.problems import BadRow

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from training.data.archive import Member
    from training.data.conversation import Row
    from training.data.problems import Report


class RowSource(Protocol):
    """Rows by number."""

    def __len__(self) -> int: ...

    def row(self, index: int) -> Row:
        """Row `index`, from 0."""
        ...

    def size(self, index: int) -> int:
        """Characters of its text, negative for a row without picture."""
        ...


class RowFile:
    """The well-formed rows of a `.json` or `.jsonl` file; `drafted` if any has a draft."""

    def __init__(self, path: Path, report: Report) -> None:
        """Read the file through; malformed rows go to `report` with their line.

        Raises:
            OSError: the file cannot be read.
        """
        self.path = path
        self._offsets = array("q")
        self._lengths = array("q")
        self._lines = array("q")
        self._sizes = array("q")
        self.drafted = False
        for offset, length, line, text in _spans(path, "conversations", report):
            try:
                row = parse_row(_load(text, f"{path}:{line}"), f"{path}:{line}")
            except BadRow as error:
                report.add(error.problem)
                continue
            self._offsets.append(offset)
            self._lengths.append(length)
            self._lines.append(line)
            self._sizes.append(_size(row))
            self.drafted |= bool(row.draft)

    def __len__(self) -> int:
        return len(self._offsets)

    def row(self, index: int) -> Row:
        """Row `index`, read from the file."""
        with self.path.open("rb") as file:
            file.seek(self._offsets[index])
            text = file.read(self._lengths[index])
        where = f"{self.path}:{self._lines[index]}"
        return parse_row(_load(text, where), where)

    def size(self, index: int) -> int:
        """Characters of its text, negative for a row without picture."""
        return self._sizes[index]


class RowShards:
    """The `.json` members of tar shards; a picture of the same name is the row's, if it names
    none itself."""

    def __init__(self, shards: Sequence[Path], report: Report) -> None:
        """Read the shards through; malformed members go to `report` with shard and name."""
        self._members: list[Member] = []
        self._images: list[str | None] = []
        self._sizes = array("q")
        self.drafted = False
        alike = Counter(shard.name for shard in shards)
        for group in _groups(members(shards, report)):
            texts = [member for member in group if member.name.lower().endswith(".json")]
            pictures = [member for member in group if member.name.lower().endswith(SUFFIXES)]
            for member in texts:
                picture = _picture_of(member, texts, pictures)
                image = None
                if picture is not None:
                    shard = picture.path if alike[picture.path.name] > 1 else picture.path.name
                    image = f"{shard}/{picture.name}"
                try:
                    row = _with_image(
                        parse_row(_load(member.read(), member.where), member.where), image
                    )
                except BadRow as error:
                    report.add(error.problem)
                    continue
                self._members.append(member)
                self._images.append(image)
                self._sizes.append(_size(row))
                self.drafted |= bool(row.draft)

    def __len__(self) -> int:
        return len(self._members)

    def row(self, index: int) -> Row:
        """Row `index`, read from its shard."""
        member = self._members[index]
        row = parse_row(_load(member.read(), member.where), member.where)
        return _with_image(row, self._images[index])

    def size(self, index: int) -> int:
        """Characters of its text, negative for a row without picture."""
        return self._sizes[index]


def values(path: Path, field: str, report: Report) -> Iterator[tuple[str, object]]:
    """Every JSON value of a `.json` or `.jsonl` file with its place, `file:line`, whatever it is.

    What is not JSON goes to `report`; in a damaged array the next object with `field` goes on.

    Raises:
        OSError: the file cannot be read.
    """
    for _, _, line, text in _spans(path, field, report):
        try:
            yield f"{path}:{line}", _load(text, f"{path}:{line}")
        except BadRow as error:
            report.add(error.problem)


def _spans(path: Path, field: str, report: Report) -> Iterator[tuple[int, int, int, bytes]]:
    """Offset, length, line and bytes of every row in a file."""
    with path.open("rb") as file:
        if file.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
            file.seek(0)
            yield from elements(file.read(), path, field, report)
            return
        for line in jsonl.lines(file):
            yield line.offset, len(line.data), line.number, line.data


def _load(text: bytes, where: str) -> object:
    try:
        return jsonl.parse(text)
    except ValueError as error:
        raise BadRow("malformed", where, str(error)) from None


def _groups(found: Iterable[Member]) -> Iterator[list[Member]]:
    """Successive members of a shard whose names agree up to the first dot of the file name."""
    group: list[Member] = []
    last = None
    for member in found:
        folder, _, name = member.name.rpartition("/")
        key = (member.path, folder, name.split(".", 1)[0])
        if key != last and group:
            yield group
            group = []
        last = key
        group.append(member)
    if group:
        yield group


def _picture_of(text: Member, texts: Sequence[Member], pictures: Sequence[Member]) -> Member | None:
    """Of the pictures of a group, the text's own: by whole name where there are several texts."""
    stem = text.name.rpartition(".")[0]
    own = (one for one in pictures if len(texts) == 1 or one.name.rpartition(".")[0] == stem)
    return next(own, None)


def _with_image(row: Row, image: str | None) -> Row:
    return row if row.image or image is None else replace(row, image=image)


def _size(row: Row) -> int:
    return row.size if row.image else -row.size
