"""CapArena-Auto: published averages, net wins, verdicts as judges write them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from training.evaluation.caparena import (
    BASELINES,
    BadResults,
    Battle,
    Outcome,
    read_battles,
    score_battles,
)

LEADERBOARD = [
    *csv.DictReader(Path(__file__).with_name("caparena_leaderboard.csv").read_text().splitlines())
]
"""Figures from the readme of github.com/njucckevin/CapArena, commit c251cdd."""


def battles(*net: float) -> list[Battle]:
    """200 of each baseline with so many more won than lost, the rest tied."""
    made = []
    for baseline, wins in zip(BASELINES, net, strict=True):
        decided: Outcome = "won" if wins > 0 else "lost"
        size = abs(round(wins))
        made += [Battle(baseline, decided, 100)] * size
        made += [Battle(baseline, "tied", 100)] * (200 - size)
    return made


@pytest.mark.parametrize("row", LEADERBOARD, ids=lambda row: row["model"])
def test_published_averages_follow_from_their_columns(row: dict[str, str]) -> None:
    columns = [float(row[f"score_vs_{name}"]) for name in ("gpt4o", "cogvlm2", "minicpm")]
    scored = score_battles(battles(*(2 * one for one in columns)))
    assert [one.mean for one in scored.baselines.values()] == pytest.approx(columns)
    assert scored.average.mean == pytest.approx(float(row["score_avg"]), abs=0.0051)


def test_there_are_22_published_rows() -> None:
    assert len(LEADERBOARD) == 22


@pytest.mark.parametrize(
    ("net", "average"),
    [((-109, -100, -100), -51.5), ((-136, -100, -100), -56), ((-163, -150, -150), -77.1667)],
)
def test_averages_of_net_wins(net: tuple[int, int, int], average: float) -> None:
    scored = score_battles(battles(*net))
    assert scored.average.mean == pytest.approx(average, abs=1e-4)
    assert scored.average.low < average < scored.average.high
    assert score_battles(battles(-199, 0, 0)).baselines[BASELINES[0]].mean == pytest.approx(-99.5)


def item(judge: object = "Tie", **fields: Any) -> dict[str, Any]:
    battle = {
        "img": "test_00001.jpg",
        "source1": "ours",
        "source2": BASELINES[0],
        "caption1": "two  words",
        "caption2": "one",
        "ref_model": BASELINES[0],
        "judge": judge,
    }
    return {name: value for name, value in (battle | fields).items() if value is not None}


def read(tmp_path: Path, *items: object, as_published: bool = False) -> list[Battle]:
    file = tmp_path / "results.json"
    file.write_text(json.dumps(items))
    return read_battles(file, as_published=as_published)


@pytest.mark.parametrize(
    ("verdict", "outcome", "published"),
    [
        ("Caption 1 is better", "won", "won"),
        ("Caption 2 is better.", "lost", "lost"),
        ("Tie", "tied", "tied"),
        ("**Caption 1 is better**", "won", "ignored"),
        ("<Caption 2 is better>", "lost", "ignored"),
        ("Judgment: tie.", "tied", "ignored"),
        ("Caption 1 is better, since", "won", "ignored"),
        ("Both are good", "ignored", "ignored"),
        ("", "unjudged", "unjudged"),
        (None, "unjudged", "unjudged"),
    ],
)
def test_verdicts(tmp_path: Path, verdict: str | None, outcome: str, published: str) -> None:
    assert read(tmp_path, item(verdict))[0].outcome == outcome
    assert read(tmp_path, item(verdict), as_published=True)[0].outcome == published


def test_who_is_caption_two_wins_with_it_and_words_are_split_at_single_spaces(
    tmp_path: Path,
) -> None:
    swapped = item("Caption 2 is better", source1=BASELINES[0], source2="ours", caption2="a b c")
    first, second = read(tmp_path, item(), swapped)
    assert first == Battle(BASELINES[0], "tied", 3)
    assert second == Battle(BASELINES[0], "won", 3)


def test_what_is_missing_counts_as_tied(tmp_path: Path) -> None:
    scored = score_battles(
        read(tmp_path, item("Caption 1 is better"), item("no verdict"), item(None))
    )
    assert scored.baselines[BASELINES[0]].mean == 0.5
    assert scored.average.mean == pytest.approx(1 / 6)
    assert scored.outcomes == {"won": 1, "ignored": 1, "unjudged": 1}


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "expected a list of battles"),
        ([3], "item 0 is no object"),
        ([item(), item(caption1=None)], "item 1 has no text caption1"),
        ([item(ref_model="GPT-3")], "ref_model 'GPT-3' is none of"),
        ([item(source1=BASELINES[0])], "of which one must be the ref_model"),
        ([item(source2="other")], "of which one must be the ref_model"),
    ],
)
def test_a_file_that_holds_no_battles(tmp_path: Path, items: list[Any], message: str) -> None:
    with pytest.raises(BadResults, match=message):
        read(tmp_path, *items)


def test_text_that_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("[{")
    with pytest.raises(BadResults, match=r"results\.json: "):
        read_battles(tmp_path / "results.json")


def test_more_battles_than_the_benchmark_has() -> None:
    with pytest.raises(BadResults, match="has 201 battles"):
        score_battles([Battle(BASELINES[1], "won", 1)] * 201)
    with pytest.raises(BadResults, match="no battle"):
        score_battles([])
