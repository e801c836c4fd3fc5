"""Arrays of rows with damage: what is whole comes out, once, and the damage is told."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data.json_array import WINDOW, elements
from training.data.problems import Report
from training.data.row_files import RowFile

TURNS = ("What?", "A {dog}, [two] cats.", "And?", 'A "fox" \\ ünd.')


def row(number: int, size: int = 0) -> dict[str, Any]:
    turns = [
        {"from": ("human", "gpt")[place % 2], "value": f"{text} {number}{'x' * size}"}
        for place, text in enumerate(TURNS)
    ]
    return {"id": number, "image": f"{number}.png", "conversations": turns}


def read(folder: Path, data: str) -> tuple[list[int], Report]:
    """Numbers of the rows that come out, each read again from its place in the file."""
    path = folder / "rows.json"
    path.write_text(data, encoding="utf-8")
    report = Report()
    source = RowFile(path, report)
    found = [source.row(index) for index in range(len(source))]
    names = [each.image.split(".")[0] for each in found if each.image]
    return [int(name) for name in names if name.isdecimal()], report


def texts(count: int, size: int = 0) -> list[str]:
    return [json.dumps(row(number, size), ensure_ascii=False) for number in range(count)]


def array(rows: list[str]) -> str:
    return "[\n" + ",\n".join(rows) + "\n]"


def spoilt(kind: str, text: str) -> str:
    """A row with one kind of damage."""
    third = text.index('{"from": "human", "value": "And?')
    return {
        "no last brace": text[:-1],
        "no end of the list": text.removesuffix("]}") + "}",
        "cut between its turns": text[:third],
        "cut before its first turn": text[: text.index('{"from"')],
        "cut within a word": text[: third + 25],
        "no quote": text.replace('"image": "', '"image": ', 1),
        "no comma between turns": text[: third - 2] + text[third:],
        "a turn without its brace": text[: third - 3] + text[third - 2 :],
        "an end too many": text[:-1] + "]}",
        "an array's end": text + "]",
        "garbage": "garbage {",
        "a number without end": "{" + '"conversations": ' + "9" * 5000 + "}",
        "brackets without end": '{"a": [' * 3000,
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        "no last brace", "no end of the list", "cut between its turns", "cut before its first turn",
        "cut within a word", "no quote", "no comma between turns", "a turn without its brace",
        "an end too many", "garbage", "a number without end", "brackets without end",
    ],
)  # fmt: skip
@pytest.mark.parametrize("lines", [True, False])
@pytest.mark.parametrize("where", [0, 4, 9])
def test_one_damaged_row_costs_itself_alone(
    tmp_path: Path, kind: str, lines: bool, where: int
) -> None:
    rows = texts(10)
    rows[where] = spoilt(kind, rows[where])
    data = array(rows)
    found, report = read(tmp_path, data if lines else data.replace("\n", ""))
    assert found == [number for number in range(10) if number != where]
    assert report.counts["malformed"] == 1
    line = where + 2 if lines else 1
    assert report.problems[0].where == f"{tmp_path / 'rows.json'}:{line}"


def test_every_damaged_row_is_told_with_its_line(tmp_path: Path) -> None:
    rows = texts(12)
    for where in (3, 4, 5, 8):
        rows[where] = spoilt("no last brace" if where % 2 else "cut within a word", rows[where])
    found, report = read(tmp_path, array(rows))
    assert found == [0, 1, 2, 6, 7, 9, 10, 11]
    lines = [int(problem.where.rpartition(":")[2]) for problem in report.problems]
    assert lines == [5, 6, 7, 10]


def test_rows_apart_by_no_comma_or_an_end_too_early_are_all_there(tmp_path: Path) -> None:
    rows = texts(5)
    found, report = read(tmp_path, f"[{rows[0]} {rows[1]}\n{rows[2]}], {rows[3]}, {rows[4]}]")
    assert found == [0, 1, 2, 3, 4]
    [problem] = report.problems
    assert "the array ends here" in problem.reason
    assert problem.where.endswith(":2")


@pytest.mark.parametrize("end", ["\n]", "\n]]", ""])
def test_a_stray_bracket_does_not_swallow_the_rows_behind_it(tmp_path: Path, end: str) -> None:
    rows = texts(8)
    rows[2] = "[" + rows[2]
    found, report = read(tmp_path, array(rows).removesuffix("\n]") + end)
    assert found == list(range(8))
    assert report.problems[0].where == f"{tmp_path / 'rows.json'}:4"


def test_garbage_between_rows_is_told(tmp_path: Path) -> None:
    rows = texts(3)
    found, report = read(tmp_path, f'[{rows[0]},\n{{"from": x}}, {rows[1]}, ??{rows[2]}')
    assert found == [0, 1, 2]
    reasons = [problem.reason for problem in report.problems]
    first, second = (len(text.encode()) for text in rows[:2])
    assert [reason.split(";")[0] for reason in reasons] == [
        f"not JSON at byte {first + 3}: Expecting value",
        f"not JSON at byte {first + second + 18}: Expecting value",
        "the array has no end",
    ]


def test_a_pretty_array_with_a_cut_row_gives_the_others(tmp_path: Path) -> None:
    rows = [json.dumps(row(number), indent=2).splitlines() for number in range(6)]
    rows[2] = rows[2][:-7]
    found, report = read(tmp_path, array(["\n".join(each) for each in rows]))
    assert found == [0, 1, 3, 4, 5]
    assert report.counts["malformed"] == 1


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.booleans())
def test_damage_anywhere_in_a_row_leaves_the_others(
    tmp_path_factory: pytest.TempPathFactory, seed: int, lines: bool
) -> None:
    chance = random.Random(seed)
    rows, spoiled = texts(9), set(chance.sample(range(9), 2))
    for where in spoiled:
        text = rows[where]
        start = chance.randrange(len(text))
        end = chance.choice([start, start + 1, start + 9, len(text)])
        rows[where] = text[:start] + chance.choice(["", "]", '"', "x,", "{", "}"]) + text[end:]
    folder = tmp_path_factory.mktemp("arrays")
    data = array(rows)
    found, _ = read(folder, data if lines else data.replace("\n", ""))
    whole = [number for number in found if number not in spoiled]
    assert whole == [number for number in range(9) if number not in spoiled]
    assert len(set(found)) == len(found)


def test_long_rows_are_whole_and_nested_ones_stay_where_they_are(tmp_path: Path) -> None:
    rows = texts(3, size=3 * WINDOW)
    rows[1] = json.dumps({**row(1), "history": [row(7), row(8)]})
    assert read(tmp_path, array(rows))[0] == [0, 1, 2]
    rows[0] = rows[0][:-1]
    rows[1] = texts(2, size=WINDOW - 200)[1]
    assert read(tmp_path, array(rows))[0] == [1, 2]


def test_a_window_may_cut_anywhere(tmp_path: Path) -> None:
    for size in range(WINDOW - 330, WINDOW - 130):
        text = json.dumps({"a": ["x" * size, True, -1.5e10, "\ud83d\ude00 \\", None]})
        found = list(elements(f"[{text}, 1]".encode(), tmp_path, "none", Report()))
        assert [json.loads(data) for *_, data in found] == [json.loads(text), 1]


@pytest.mark.parametrize("kind", ["cut between its turns", "no last brace"])
def test_what_is_decoded_again_and_again_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Counts characters given to the decoder: with many damaged rows few times the file's."""
    seen = 0
    decode = json.JSONDecoder.raw_decode

    def counted(self: json.JSONDecoder, text: str, idx: int = 0) -> tuple[Any, int]:
        nonlocal seen
        try:
            value, end = decode(self, text, idx)
        except json.JSONDecodeError as error:
            seen += error.pos
            raise
        seen += end
        return value, end

    monkeypatch.setattr(json.JSONDecoder, "raw_decode", counted)
    rows = texts(2000)
    damaged = range(1, 2000, 20)
    for where in damaged:
        rows[where] = spoilt(kind, rows[where])
    data = array(rows)
    found, _ = read(tmp_path, data)
    assert found == [number for number in range(2000) if number not in damaged]
    assert seen < 8 * len(data)
