"""The third step of Stage II: what of the corrections can be trained on.

A row of the result is a conversation with `revise` pairs, as `rows.parse_row` reads them, and
carries the draft's own tokens besides: `ids`, `labels` and `flags`, the positions to be trained.
Where canvases on the way to a draft were kept and the labels are all that it should say, there are
`states` too; a right draft with states is a row without `revise` pairs.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from training.correction.records import RecordError, Verdict, read_records, write_records
from training.correction.token_edits import apply
from training.data.conversation import IMAGE_TAG
from training.data.segment_labels import Correction, locate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tokenizers import Tokenizer

    from training.correction.records import Draft
    from training.data.segment_labels import Segment


@dataclass(frozen=True, slots=True)
class Corrected:
    """A draft of a scene with labels of equal length; positions in `flags` are trained."""

    key: str
    scene: tuple[str, int]
    ids: tuple[int, ...]
    labels: tuple[int, ...]
    flags: tuple[int, ...]
    states: tuple[tuple[int, ...], ...] = ()
    """Canvases on the way to the draft, if `labels` is whole and right."""
    whole: bool = False
    """`labels` is all that the draft should have said, and right."""

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Raises KeyError or TypeError for a value that is no corrected draft of a scene."""
        split, seed = value["scene"]
        return cls(
            key=value["key"],
            scene=(split, seed),
            ids=tuple(value["ids"]),
            labels=tuple(value["labels"]),
            flags=tuple(value["flags"]),
            states=tuple(map(tuple, value.get("states", ()))),
            whole=value.get("whole", False),
        )


def filter_corrections(
    drafts: Sequence[Draft],
    verdicts: Path,
    tokenizer: Tokenizer,
    path: Path,
    *,
    keep_right: bool = False,
) -> Counter[str]:
    """Write the usable corrections of `verdicts` to `path`, whole, in the drafts' order.

    Drafts that are right and whole are written too where they have states, or with `keep_right`.
    Returns counts. Of drafts: `kept`, and left out as `unjudged`, `right`, `malformed`, `refused`,
    `hopeless` (no pair) or `pairless` (no pair survived). Of pairs, each named `pair_...`: `kept`,
    `missing`, `ambiguous`, `overlapping`, `identical`, `unequal`, `unaligned`; see `report.Kind`.

    Raises:
        RecordError: a record of `verdicts` is no verdict.
    """
    known: dict[str, Verdict] = {}
    for number, record in enumerate(read_records(verdicts), 1):
        try:
            known[record["key"]] = Verdict.from_json(record)
        except (KeyError, TypeError) as error:
            raise RecordError(f"{verdicts}:{number}: no verdict: {error!r}") from None
    counts: Counter[str] = Counter()
    rows = []
    for draft in drafts:
        row, outcome = _row(draft, known.get(draft.key), tokenizer, counts, keep_right)
        counts[outcome] += 1
        if row is not None:
            rows.append(row)
    write_records(path, rows)
    return counts


def read_corrected(path: Path) -> list[Corrected]:
    """The corrected drafts of scenes in a file.

    Raises:
        RecordError: a record is none.
    """
    found = []
    for number, record in enumerate(read_records(path), 1):
        try:
            found.append(Corrected.from_json(record))
        except (KeyError, TypeError) as error:
            raise RecordError(f"{path}:{number}: no corrected scene: {error!r}") from None
    return found


def _row(
    draft: Draft,
    verdict: Verdict | None,
    tokenizer: Tokenizer,
    counts: Counter[str],
    keep_right: bool,
) -> tuple[dict[str, Any] | None, str]:
    if verdict is None:
        return None, "unjudged"
    if verdict.fault:
        return None, verdict.fault
    if verdict.right:
        if not verdict.whole or not (draft.states or keep_right):
            return None, "right"
        unchanged = Correction(draft.ids, draft.ids, (False,) * len(draft.ids))
        return _conversation(draft, unchanged, (), whole=True), "right"
    if not verdict.pairs:
        return None, "hopeless"
    segments, problems = locate([draft.text], verdict.pairs, draft.key)
    correction, used, left_out = apply(draft, segments, tokenizer)
    counts["pair_kept"] += len(used)
    counts.update(f"pair_{problem.kind}" for problem in (*problems, *left_out))
    if not used:
        return None, "pairless"
    whole = verdict.whole and len(used) == len(verdict.pairs)
    return _conversation(draft, correction, used, whole=whole), "kept"


def _conversation(
    draft: Draft,
    correction: Correction,
    used: Sequence[Segment],
    *,
    whole: bool,
) -> dict[str, Any]:
    tag = f"{IMAGE_TAG}\n" if draft.image else ""
    row: dict[str, Any] = {
        "key": draft.key,
        "image": draft.image,
        "scene": draft.scene,
        "tokens_per_step": draft.tokens_per_step,
        "conversations": [
            {"from": "human", "value": f"{tag}{draft.question}"},
            {"from": "gpt", "value": draft.text},
        ],
        "revise": [
            {
                "org": draft.text[segment.start : segment.end],
                "target": segment.target,
                "start": segment.start,
            }
            for segment in used
        ],
        "ids": correction.ids,
        "labels": correction.labels,
        "flags": [place for place, flagged in enumerate(correction.revise) if flagged],
    }
    if whole:
        row["whole"] = True
        if draft.states:
            row["states"] = draft.states
    return row
