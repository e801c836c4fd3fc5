"""What became of requests: every one answered or lost, and how long it took."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from benchmarks.wire import Answer, Lost

if TYPE_CHECKING:
    from collections.abc import Sequence

PERCENTILES: Final = (50, 90, 95, 99)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request. Times are on `time.perf_counter`."""

    due: float
    """When it was to be sent: its latency counts from here, so that a late sender hides none."""
    sent: float
    ended: float
    result: Answer | Lost
    place: int = 0
    """Number of its picture."""

    @property
    def kind(self) -> str:
        """Its status, `200 CODE` for a stream that ended with an error, or `lost: REASON`."""
        if isinstance(self.result, Lost):
            return f"lost: {self.result}"
        if self.result.status != 200:
            return str(self.result.status)
        if not self.result.events:
            return "200"
        _, name, data = self.result.events[-1]
        if name == "done":
            return "200"
        if name == "error":
            return f"200 {json.loads(data)['error']['code']}"
        return "lost: no end"

    @property
    def seconds(self) -> float:
        return self.ended - self.due

    @property
    def steps(self) -> list[float]:
        """When each step of a stream came."""
        if isinstance(self.result, Lost):
            return []
        return [at for at, name, _ in self.result.events if name == "step"]

    @property
    def caption(self) -> dict[str, Any]:
        """The answer of a request that got its caption."""
        assert isinstance(self.result, Answer)
        events = self.result.events
        answer: dict[str, Any] = json.loads(events[-1][2] if events else self.result.body)
        return answer


def percentiles(values: Sequence[float]) -> dict[str, float] | None:
    """p50 to p99 and the largest; None of nothing."""
    if not values:
        return None
    points = np.percentile(np.array(values), PERCENTILES).tolist()
    named = {f"p{at}": value for at, value in zip(PERCENTILES, points, strict=True)}
    return {**named, "max": max(values)}


def summarise(
    outcomes: Sequence[Outcome], began: float, seconds: float, objective: float
) -> dict[str, Any]:
    """Counts and times of all requests, and rates of a window.

    Rates count what ended within `seconds` of `began`, whenever it was sent: neither the start nor
    what is still queued at the end is throughput. Goodput is the part of it that took no more than
    `objective` seconds.
    """
    kinds = Counter(outcome.kind for outcome in outcomes)
    good = [outcome for outcome in outcomes if outcome.kind == "200"]
    refused = [outcome for outcome in outcomes if outcome.kind in ("429", "503")]
    within = [one for one in good if began <= one.ended <= began + seconds]
    first = [outcome.steps[0] - outcome.due for outcome in good if outcome.steps]
    between = [two - one for outcome in good for one, two in pairwise(outcome.steps)]
    return {
        "sent": len(outcomes),
        "outcomes": dict(sorted(kinds.items())),
        "lost": sum(count for kind, count in kinds.items() if kind.startswith("lost")),
        "refused_without_retry_after": sum(
            "retry-after" not in outcome.result.headers
            for outcome in refused
            if isinstance(outcome.result, Answer)
        ),
        "seconds": seconds,
        "sent_per_second": sum(began <= one.due <= began + seconds for one in outcomes) / seconds,
        "captions_per_second": len(within) / seconds,
        "objective_seconds": objective,
        "goodput_per_second": sum(one.seconds <= objective for one in within) / seconds,
        "latency_seconds": percentiles([outcome.seconds for outcome in good]),
        "refusal_seconds": percentiles([outcome.seconds for outcome in refused]),
        "first_step_seconds": percentiles(first),
        "between_steps_seconds": percentiles(between),
        "sender_late_seconds": percentiles([outcome.sent - outcome.due for outcome in outcomes]),
    }
