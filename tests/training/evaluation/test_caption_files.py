"""Captions by picture, from every format that is taken."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from training.evaluation.caption_files import BadCaptions, read_captions, read_predictions

if TYPE_CHECKING:
    from pathlib import Path

TWO = {"a.png": ["A cat."], "b.png": ["A dog."]}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.json", '{"a.png": "A cat.", "b.png": ["A dog."]}'),
        (
            "x.json",
            '\ufeff[{"id": "a.png", "caption": "A cat."}, {"id": "b.png", "text": "A dog."}]',
        ),
        (
            "x.jsonl",
            '{"image": "a.png", "captions": ["A cat."]}\n\n{"id": "b.png", "caption": "A dog."}',
        ),
        ("x.csv", "id,source,caption\na.png,/x,A cat.\nb.png,/y,A dog.\n"),
        ("X.CSV", 'caption,file_name\r\nA cat.,a.png\r\n"A dog.",b.png\r\n'),
    ],
)
def test_formats(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_captions(tmp_path / name) == TWO
    assert read_predictions(tmp_path / name) == {"a.png": "A cat.", "b.png": "A dog."}


def test_rows_of_the_same_picture_are_its_references(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(
        '{"image_id": 7, "caption": "one"}\n{"image_id": 7, "caption": "two"}\n'
    )
    assert read_captions(tmp_path / "x.jsonl") == {"7": ["one", "two"]}
    with pytest.raises(BadCaptions, match="7 has 2 captions, expected one"):
        read_predictions(tmp_path / "x.jsonl")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.txt", "a", r"is none of \.json, \.jsonl, \.csv"),
        ("x.json", "{", "x.json: "),
        ("x.json", "3", "3 is neither an object nor a list"),
        ("x.json", "{}", "holds no caption"),
        ("x.json", '{"a.png": 5}', "a.png: 5 is no text"),
        ("x.json", '{"a.png": null}', "a.png: None is no text"),
        ("x.json", '["A cat."]', "item 0: 'A cat.' is no object"),
        ("x.jsonl", '{"id": "a"}', "x.jsonl:1 has no caption"),
        ("x.jsonl", '{"caption": "a"}', "x.jsonl:1 names no picture"),
        ("x.jsonl", '{"id": ["a"], "caption": "a"}', "x.jsonl:1 names no picture"),
        ("x.jsonl", "{]", "x.jsonl:1: "),
        ("x.csv", "id,words\na,b\n", "row 1 has no caption"),
    ],
)
def test_other_files_are_named_with_the_place(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(BadCaptions, match=message):
        read_captions(tmp_path / name)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    for name in ("x.json", "x.csv", "x.jsonl"):
        (tmp_path / name).write_bytes(b'{"a": "\xff"}\n')
        with pytest.raises(BadCaptions, match=name):
            read_captions(tmp_path / name)
