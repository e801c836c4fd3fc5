"""An oracle that errs: a share of its corrections left out or wrong."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from training.correction.experts.oracle import OracleExpert
    from training.correction.records import Draft, Verdict
    from training.data.conversation import Pair
    from training.stickers.graph import Scene


@dataclass(frozen=True, slots=True)
class NoisyExpert:
    """Each correction on its own is left out with probability `dropped`, or else made wrong with
    `wrong`; the same for the same seed and draft.

    A wrong correction is one that the oracle would make of the draft if it looked at another
    scene, `decoy_of(rng)`: of equal token count, fluent, and unrelated to the picture.
    """

    oracle: OracleExpert
    decoy_of: Callable[[random.Random], Scene]
    dropped: float = 0.0
    wrong: float = 0.0
    seed: int = 0
    concurrency: int = 1

    def __post_init__(self) -> None:
        if min(self.dropped, self.wrong) < 0 or self.dropped + self.wrong > 1:
            raise ValueError(
                f"dropped and wrong must be shares of at most 1 together, "
                f"got {self.dropped} and {self.wrong}"
            )

    def judge(self, draft: Draft) -> Verdict:
        """The oracle's verdict with errors; a right draft stays right."""
        verdict = self.oracle.judge(draft)
        chance = random.Random(f"{self.seed}:{draft.key}")
        kept: list[Pair] = []
        spoilt: list[Pair] = []
        for pair in verdict.pairs:
            luck = chance.random()
            if luck >= self.dropped + self.wrong:
                kept.append(pair)
            elif luck >= self.dropped:
                spoilt.append(pair)
        if spoilt:
            other = self.oracle.judge_against(draft, self.decoy_of(chance)).pairs
            for pair in spoilt:
                wrong = _beside(pair, [each for each in other if each not in verdict.pairs], kept)
                if wrong is not None:
                    kept.append(wrong)
        kept.sort(key=lambda pair: pair.start or 0)
        return replace(verdict, pairs=tuple(kept))

    def usage(self) -> dict[str, float]:
        return {}


def _beside(pair: Pair, others: Sequence[Pair], taken: Sequence[Pair]) -> Pair | None:
    """The correction of the other scene nearest to this one's place and free of those taken."""
    free = [other for other in others if not any(_overlap(other, each) for each in taken)]
    return min(free, key=lambda other: abs((other.start or 0) - (pair.start or 0)), default=None)


def _overlap(one: Pair, other: Pair) -> bool:
    start, begin = one.start or 0, other.start or 0
    return start < begin + len(other.org) and begin < start + len(one.org)
