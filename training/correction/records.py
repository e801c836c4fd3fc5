"""What Stage II keeps between its steps: drafts and verdicts, as JSON lines with a key each."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

from rediff_model.files import jsonl
from rediff_model.files.atomic import replacing
from training.data.conversation import Pair

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

Fault = Literal["", "malformed", "refused"]
"""Why a verdict holds nothing: the answer could not be read, or the expert declined."""


class RecordError(ValueError):
    """A file of records that cannot be used; the message names file and line."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A caption that the model wrote, and what it was asked."""

    key: str
    question: str
    reference: str
    """A right answer; the expert sees it, the model does not."""
    ids: tuple[int, ...]
    """As sampled: not always what the tokenizer makes of `text`."""
    text: str
    tokens_per_step: int
    image: str | None = None
    """Name of the picture, or None for a scene."""
    scene: tuple[str, int] | None = None
    """Split and seed of the scene."""
    states: tuple[tuple[int, ...], ...] = ()
    """Canvases on the way to it, masks and all, from some of its steps."""

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Raises KeyError or TypeError for a value that is no draft."""
        scene = value["scene"]
        return cls(
            key=value["key"],
            question=value["question"],
            reference=value["reference"],
            ids=tuple(value["ids"]),
            text=value["text"],
            tokens_per_step=value["tokens_per_step"],
            image=value["image"],
            scene=None if scene is None else (scene[0], scene[1]),
            states=tuple(map(tuple, value.get("states", ()))),
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an expert says of a draft. Neither right nor with pairs: wrong beyond repair."""

    pairs: tuple[Pair, ...] = ()
    right: bool = False
    fault: Fault = ""
    whole: bool = True
    """The draft says all it should, and is right but for the pairs."""

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Raises KeyError or TypeError for a value that is no verdict."""
        pairs = tuple(Pair(**pair) for pair in value["pairs"])
        return cls(pairs, value["right"], value["fault"], value.get("whole", True))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Appender:
    """Adds records to a file, one line each, and knows the keys that are there.

    A line that a killed run left unfinished is cut off when the file is opened.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        jsonl.cut_torn_line(path)
        self.keys = {record["key"] for record in read_records(path)}
        self._file = path.open("ab")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, record: Mapping[str, Any]) -> None:
        """Write a record, which has a `key` of its own, to the disk."""
        self._file.write(jsonl.dump(record))
        self._file.flush()
        self.keys.add(record["key"])


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file in order; none if there is no file.

    Raises:
        RecordError: a line is not a JSON object with a key.
    """
    for _, record in _numbered(path):
        yield record


def _numbered(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and record, as `read_records` gives them."""
    if not path.exists():
        return
    try:
        for number, record in jsonl.read(path):
            if not isinstance(record, dict) or not isinstance(record.get("key"), str):
                raise RecordError(f"{path}:{number}: a record needs a key, got {record!r:.60}")
            yield number, record
    except jsonl.BadLine as error:
        raise RecordError(str(error)) from None


def write_records(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write a file whole: a reader sees the old one or the new one, if records fail to come too."""
    with replacing(path, sync=False) as file:
        file.writelines(map(jsonl.dump, records))


def read_drafts(path: Path) -> list[Draft]:
    """The drafts of a file.

    Raises:
        RecordError: a record is no draft.
    """
    drafts = []
    for number, record in _numbered(path):
        try:
            drafts.append(Draft.from_json(record))
        except (KeyError, TypeError) as error:
            raise RecordError(f"{path}:{number}: no draft: {error!r}") from None
    return drafts
