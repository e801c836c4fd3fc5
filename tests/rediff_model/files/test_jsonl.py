"""JSON lines as strangers' tools write them, and as killed processes leave them."""

from __future__ import annotations

import json
import tracemalloc
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rediff_model.files import jsonl

if TYPE_CHECKING:
    from pathlib import Path

MARK = b"\xef\xbb\xbf"


def values(path: Path, data: bytes) -> list[tuple[int, object]]:
    path.write_bytes(data)
    return list(jsonl.read(path))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", []),
        (b'{"a": 1}\n{"a": 2}\n', [(1, {"a": 1}), (2, {"a": 2})]),
        (b'{"a": 1}\n{"a": 2}', [(1, {"a": 1}), (2, {"a": 2})]),
        (b'{"a": 1}\r\n\r\n{"a": 2}\r\n', [(1, {"a": 1}), (3, {"a": 2})]),
        (MARK + b"1\n \t\n\n2\n", [(1, 1), (4, 2)]),
        # Two files with a mark, joined.
        (MARK + b"1\n" + MARK + b"2\n" + MARK + b"\n", [(1, 1), (2, 2)]),
        ('{"a": "x\u2028y\u2029z\x85"}\n2\n'.encode(), [(1, {"a": "x\u2028y\u2029z\x85"}), (2, 2)]),
        ('"\u2028"\n"é"\n"\U0001f600"\n'.encode(), [(1, "\u2028"), (2, "é"), (3, "\U0001f600")]),
        (b'"\\u0000"\n', [(1, "\0")]),
    ],
)
def test_every_line_is_read_with_its_number(
    tmp_path: Path, data: bytes, expected: list[tuple[int, object]]
) -> None:
    assert values(tmp_path / "rows.jsonl", data) == expected


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a": 1', "not JSON: Expecting ',' delimiter at character 7"),
        (b'{"a": "cut', "not JSON: Unterminated string starting at character 6"),
        (b'{"a": "x\x0by"}\n', "not JSON: Invalid control character at character 8"),
        (b"\0\0\0\0\n", "not JSON: it holds NUL bytes"),
        (b'{"a": "\0"}\n', "not JSON: it holds NUL bytes"),
        (b'{"a": "caf\xe9"}\n', "not UTF-8 at byte 10"),
        (b'{"a": 1}{"a": 2}\n', "not JSON: Extra data at character 8"),
        (b"[" * 100_000 + b"\n", "not JSON: nested too deeply"),
        (b"9" * 5000 + b"\n", "Exceeds the limit"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"1\n\n" + line)
    rows = jsonl.read(path)
    assert next(rows) == (1, 1)
    with pytest.raises(jsonl.BadLine) as caught:
        next(rows)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert reason in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-16-le"])
def test_a_file_in_utf_16_is_refused_once(tmp_path: Path, encoding: str) -> None:
    text = "\ufeff" * (encoding != "utf-16") + '{"a": "\u0a0a"}\n' * 3
    (tmp_path / "rows.jsonl").write_bytes(text.encode(encoding))
    with (tmp_path / "rows.jsonl").open("rb") as stream:
        [line] = jsonl.lines(stream)
    assert line.number == 1
    with pytest.raises(ValueError, match="it is UTF-16, expected UTF-8"):
        jsonl.parse(line.data)


def test_a_huge_line_costs_itself_and_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "MAX_LINE", 1000)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"1\n" + b'"' + b"x" * 5_000_000 + b'"\n2\n' + b"x" * 3_000_000)
    tracemalloc.start()
    with path.open("rb") as stream:
        found = list(jsonl.lines(stream))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [(line.number, line.offset) for line in found] == [
        (1, 0), (2, 2), (3, 5_000_005), (4, 5_000_007),
    ]  # fmt: skip
    assert peak < 1_000_000
    for line in (found[1], found[3]):
        with pytest.raises(ValueError, match="above the limit of 1000 bytes"):
            jsonl.parse(line.data)
    assert jsonl.parse(found[2].data) == 2


@given(st.lists(st.one_of(st.text(), st.integers(), st.lists(st.text()))), st.booleans())
def test_what_is_written_is_read_from_its_place(
    tmp_path_factory: pytest.TempPathFactory, rows: list[object], ascii_only: bool
) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    text = "".join(json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in rows)
    data = text.encode("utf-8", "surrogatepass")
    path.write_bytes(data)
    with path.open("rb") as stream:
        found = list(jsonl.lines(stream))
    assert [data[line.offset :][: len(line.data)] for line in found] == [
        line.data for line in found
    ]
    assert len(found) == len(rows)


def test_written_lines_are_lines_for_every_reader(tmp_path: Path) -> None:
    value = {"a": "x\x85y\u2028z\u2029\x0b\x0c\x1c\r\n", "b": "\u00fc"}
    line = jsonl.dump(value)
    assert line.decode().splitlines() == [line.decode().removesuffix("\n")]
    assert "\u00fc" in line.decode()
    assert values(tmp_path / "rows.jsonl", line * 2) == [(1, value), (2, value)]


def test_a_torn_line_is_cut_wherever_it_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    whole = b'{"a": "' + b"x" * 70_000 + '"}\n{"a": "ü"}\n'.encode()
    first = whole.index(b"\n") + 1
    for length in (0, 1, 70_000, first - 1, first, first + 1, len(whole) - 1, len(whole)):
        path.write_bytes(whole[:length])
        jsonl.cut_torn_line(path)
        kept = 0 if length < first else first if length < len(whole) else length
        assert path.read_bytes() == whole[:kept]
    jsonl.cut_torn_line(tmp_path / "missing")
