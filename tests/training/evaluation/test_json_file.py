"""Whole JSON files, and what is no JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from training.evaluation.json_file import BadJson, read_json

if TYPE_CHECKING:
    from pathlib import Path


def test_a_byte_order_mark_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('\ufeff{"a": [1]}', encoding="utf-8")
    assert read_json(tmp_path / "x.json") == {"a": [1]}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a": 1, "b": 2, "b": 3}', "the key 'b' is there twice"),
        (b"{", "Expecting"),
        (b"", "Expecting value"),
        (b'"\xff"', "codec can't decode"),
    ],
)
def test_what_is_no_json_is_named(tmp_path: Path, data: bytes, reason: str) -> None:
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(BadJson, match=r"x\.json: .*" + reason):
        read_json(tmp_path / "x.json")
