"""Captions and references by picture, from the files that captioners and benchmarks write."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING, Final

from rediff_model.files import jsonl
from training.evaluation.json_file import BadJson, read_json

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEYS: Final = ("id", "file", "image", "image_id", "file_name", "img")
TEXTS: Final = ("caption", "captions", "text", "prediction")


class BadCaptions(ValueError):
    """A file that holds no captions; the message names the file and the place."""


def read_captions(file: Path) -> dict[str, list[str]]:
    """Texts by picture, in the file's order.

    Formats, by suffix: `.json` is an object of picture to text or list of texts, or a list of rows;
    `.jsonl` has a row a line, `.csv` a header. A row has the picture under one of `KEYS` and its
    text, or a list of them, under one of `TEXTS`, the first that is there; rows of the same picture
    are put together.

    Raises:
        BadCaptions: it is none of these, or holds nothing.
        OSError: it cannot be read.
    """
    texts: dict[str, list[str]] = {}
    for where, key, value in _pairs(file):
        several = texts.setdefault(key, [])
        for text in value if isinstance(value, list) else [value]:
            if not isinstance(text, str):
                raise BadCaptions(f"{where}: {_short(text)} is no text")
            several.append(text)
    if not texts:
        raise BadCaptions(f"{file} holds no caption")
    return texts


def read_predictions(file: Path) -> dict[str, str]:
    """One caption a picture, from a file as `read_captions` takes it.

    Raises:
        BadCaptions: as there, or a picture has two captions.
        OSError: it cannot be read.
    """
    captions = read_captions(file)
    for key, several in captions.items():
        if len(several) != 1:
            raise BadCaptions(f"{file}: {key} has {len(several)} captions, expected one")
    return {key: text for key, (text,) in captions.items()}


def _pairs(file: Path) -> Iterator[tuple[str, str, object]]:
    """Place, picture and value of every entry."""
    suffix = file.suffix.lower()
    try:
        if suffix == ".jsonl":
            for number, row in jsonl.read(file):
                yield _of_row(row, f"{file}:{number}")
        elif suffix == ".csv":
            with file.open(encoding="utf-8-sig", newline="") as stream:
                for number, row in enumerate(csv.DictReader(stream), 1):
                    yield _of_row(row, f"{file}: row {number}")
        elif suffix == ".json":
            whole = read_json(file)
            if isinstance(whole, dict):
                yield from ((f"{file}: {key}", key, value) for key, value in whole.items())
            elif isinstance(whole, list):
                for number, row in enumerate(whole):
                    yield _of_row(row, f"{file}: item {number}")
            else:
                raise BadCaptions(f"{file}: {_short(whole)} is neither an object nor a list")
        else:
            raise BadCaptions(f"{file} is none of .json, .jsonl, .csv")
    except BadCaptions:
        raise
    except (jsonl.BadLine, BadJson) as error:
        raise BadCaptions(str(error)) from None
    except (ValueError, csv.Error) as error:
        raise BadCaptions(f"{file}: {error}") from None


def _of_row(row: object, where: str) -> tuple[str, str, object]:
    if not isinstance(row, dict):
        raise BadCaptions(f"{where}: {_short(row)} is no object")
    key = next((row[name] for name in KEYS if row.get(name) not in (None, "")), None)
    if not isinstance(key, str | int):
        raise BadCaptions(f"{where} names no picture; expected one of {', '.join(KEYS)}")
    name = next((name for name in TEXTS if row.get(name) is not None), None)
    if name is None:
        raise BadCaptions(f"{where} has no caption; expected one of {', '.join(TEXTS)}")
    return where, str(key), row[name]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:39]}…"
