"""The second step of Stage II: an expert corrects drafts."""

from __future__ import annotations

import logging
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from tqdm import tqdm

from training.correction.experts.protocol import ExpertError, Unanswered
from training.correction.records import Appender
from training.data.problems import listed

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from training.correction.experts.protocol import Expert
    from training.correction.records import Draft, Verdict

logger = logging.getLogger(__name__)

PATIENCE = 20
"""Drafts in a row without an answer, or with none but refusals, after which the expert is taken to
be down, or asked in a way that it never answers."""

UNANSWERED = 0.1
"""Share of the drafts that may stay without an answer, and so without use."""

_WINDOW = 16
"""Drafts waiting for each thread."""


def correct(
    drafts: Sequence[Draft], expert: Expert, path: Path, *, progress: bool = False
) -> Counter[str]:
    """Write the verdicts of drafts to `path`, those that are not there yet, in the drafts' order.

    Returns how many were `known`, `right`, `corrected`, `hopeless` (wrong, with no pair),
    `malformed`, `refused` and `unanswered`. The last are not written, so the next call asks again.

    Raises:
        ExpertError: the expert cannot be used, `PATIENCE` drafts in a row got no answer or were
            refused, or more than the share `UNANSWERED` got none. What was answered is kept, and
            the others are asked for again.
    """
    counts: Counter[str] = Counter()
    silent = 0
    reason = ""
    pending: list[tuple[Draft, Verdict]] = []
    with Appender(path) as out, ThreadPoolExecutor(expert.concurrency) as pool:
        todo = [draft for draft in drafts if draft.key not in out.keys]
        counts["known"] = len(drafts) - len(todo)
        size = _WINDOW * expert.concurrency
        bar = tqdm(total=len(todo), disable=not progress, dynamic_ncols=True)

        def settle() -> None:
            """Write the verdict that is last, and the refusals before it."""
            for draft, verdict in pending:
                out.add({"key": draft.key, **verdict.to_json()})
                counts[
                    verdict.fault
                    or ("right" if verdict.right else "corrected" if verdict.pairs else "hopeless")
                ] += 1
                bar.update()
            pending.clear()

        for start in range(0, len(todo), size):
            window = todo[start : start + size]
            for draft, future in [(draft, pool.submit(expert.judge, draft)) for draft in window]:
                try:
                    verdict = future.result()
                except Unanswered as error:
                    counts["unanswered"] += 1
                    silent += 1
                    reason = str(error)
                    logger.warning("%s: %s", draft.key, error)
                    if silent == PATIENCE:
                        pool.shutdown(cancel_futures=True)
                        raise ExpertError(f"{silent} drafts in a row got none: {error}") from error
                    continue
                except ExpertError:
                    pool.shutdown(cancel_futures=True)
                    raise
                silent = 0
                pending.append((draft, verdict))
                if verdict.fault == "refused":
                    if len(pending) == PATIENCE:
                        pool.shutdown(cancel_futures=True)
                        raise ExpertError(f"{PATIENCE} drafts in a row were refused")
                    continue
                settle()
        settle()
        bar.close()
    if counts["unanswered"] > UNANSWERED * len(drafts):
        raise ExpertError(
            f"too many of {len(drafts)} drafts have no answer: {listed(counts)}; the same command "
            f"asks for them again. The last: {reason}"
        )
    return counts
