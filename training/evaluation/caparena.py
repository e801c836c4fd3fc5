"""CapArena-Auto: the score of a finished file of battles (Cheng et al., arXiv 2503.12329).

A model's caption of each of 600 pictures meets one of three baselines' captions, and a judge names
the better one.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from training.evaluation.intervals import Interval, intervals
from training.evaluation.json_file import BadJson, read_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

BASELINES: Final = ("GPT-4o-0806", "CogVLM2-llama3-chat-19B", "MiniCPM-V2.6-8B")
BATTLES: Final = 200
"""Of each baseline: the published score divides by this number, however many were judged."""

Outcome = Literal["won", "lost", "tied", "unjudged", "ignored"]

_PUBLISHED: Final = re.compile(r"(Caption 1 is better|Caption 2 is better|Tie)\.?")
_LENIENT: Final = re.compile(r"(caption 1 is better|caption 2 is better|tie)", re.IGNORECASE)
_AROUND: Final = " \t\r\n*_<>[]()\"'`."


class BadResults(ValueError):
    """A file that holds no battles; the message names the file and the item."""


@dataclass(frozen=True, slots=True)
class Battle:
    """One picture."""

    baseline: str
    outcome: Outcome
    """Of the model that is scored."""
    words: int
    """Of its caption, split at single spaces."""


@dataclass(frozen=True, slots=True)
class ArenaScore:
    """Net wins in percent of the battles, -100 to 100."""

    average: Interval
    """Mean of the three baselines' scores."""
    baselines: Mapping[str, Interval]
    words: float
    """Mean length of the model's captions."""
    outcomes: Mapping[Outcome, int]


def read_battles(file: Path, *, as_published: bool = False) -> list[Battle]:
    """The battles of a result file: a JSON list of objects.

    Each has `ref_model`, `source1`, `source2`, `caption1` and `caption2`, and `judge` once it was
    judged: "Caption 1 is better", "Caption 2 is better" or "Tie".

    Args:
        as_published: take only these texts, with or without a full stop, and ignore others. By
            default case, marks around a verdict and what follows it do not matter.

    Raises:
        BadResults: it is no such list, or a model meets itself.
        OSError: it cannot be read.
    """
    try:
        items = read_json(file)
    except BadJson as error:
        raise BadResults(str(error)) from None
    if not isinstance(items, list) or not items:
        raise BadResults(f"{file}: expected a list of battles")
    return [_battle(item, f"{file}: item {n}", as_published) for n, item in enumerate(items)]


def _battle(item: object, where: str, as_published: bool) -> Battle:
    if not isinstance(item, dict):
        raise BadResults(f"{where} is no object")
    texts = {}
    for name in ("ref_model", "source1", "source2", "caption1", "caption2"):
        if not isinstance(item.get(name), str):
            raise BadResults(f"{where} has no text {name}")
        texts[name] = item[name]
    baseline = texts["ref_model"]
    if baseline not in BASELINES:
        raise BadResults(f"{where}: ref_model {baseline!r} is none of {', '.join(BASELINES)}")
    first, second = texts["source1"] == baseline, texts["source2"] == baseline
    if first == second:
        raise BadResults(
            f"{where}: source1 {texts['source1']!r} and source2 {texts['source2']!r}, of which one "
            f"must be the ref_model {baseline!r}"
        )
    own = 2 if first else 1
    return Battle(
        baseline=baseline,
        outcome=_outcome(item.get("judge"), own, as_published),
        words=len(texts[f"caption{own}"].split(" ")),
    )


def _outcome(verdict: object, own: int, as_published: bool) -> Outcome:
    if verdict is None or verdict == "":
        return "unjudged"
    text = str(verdict)
    match = (
        _PUBLISHED.fullmatch(text)
        if as_published
        else _LENIENT.match(text.lstrip(_AROUND).removeprefix("Judgment:").lstrip(_AROUND))
    )
    if match is None:
        return "ignored"
    named = match[1].lower()
    if named == "tie":
        return "tied"
    return "won" if named == f"caption {own} is better" else "lost"


def score_battles(battles: Iterable[Battle]) -> ArenaScore:
    """Score each baseline as half its net wins, and average over the three.

    Battles that are missing, unjudged or ignored count as ties, and so does a baseline that is the
    model itself. Intervals resample the battles of each baseline.

    Raises:
        BadResults: a baseline has more than `BATTLES` battles, or there is none at all.
    """
    net: dict[str, list[int]] = defaultdict(list)
    outcomes: Counter[Outcome] = Counter()
    words = []
    for battle in battles:
        outcomes[battle.outcome] += 1
        words.append(battle.words)
        net[battle.baseline].append((battle.outcome == "won") - (battle.outcome == "lost"))
    if not words:
        raise BadResults("there is no battle to score")
    columns = []
    for baseline in BASELINES:
        if (count := len(net[baseline])) > BATTLES:
            raise BadResults(
                f"{baseline} has {count} battles, above the {BATTLES} of the benchmark"
            )
        columns.append([*net[baseline], *[0] * (BATTLES - count)])
    # The same places are drawn of every baseline, which are different pictures.
    rows_NK = np.array(columns, dtype=float).T
    each = intervals(100 * rows_NK)
    (average,) = intervals(100 * rows_NK, lambda means_K: means_K.mean(keepdims=True))
    return ArenaScore(
        average=average,
        baselines=dict(zip(BASELINES, each, strict=True)),
        words=float(np.mean(words)),
        outcomes=dict(outcomes),
    )
