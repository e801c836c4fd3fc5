"""What an expert is told and how its answers are read."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from training.data.conversation import Pair

if TYPE_CHECKING:
    from collections.abc import Sequence

    from training.correction.records import Draft

INSTRUCTIONS = """\
You check descriptions of pictures word by word. You are given a picture, a question about it, a \
reference answer that is right, and a draft answer that a model wrote.

Find every segment of the draft that is wrong: something that is not in the picture, a wrong \
colour, shape, size, number, position or relation, a word repeated or out of place, an error of \
grammar or spelling. What the draft leaves out is no error, and neither is another wording.

Answer with JSON alone, a list of corrections:
[{"org": "<segment as it stands in the draft>", "target": "<what it should be>"}]

- "org" is copied from the draft exactly, as short as possible, in whole words; include a \
neighbouring word where the segment occurs more than once.
- "org" and "target" have the same number of words, and of tokens as nearly as you can tell. \
Rephrase the target to make it fit. Leave a correction out if none fits.
- Segments do not overlap.
If nothing is wrong, answer with the single word: right"""

_THOUGHT = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)
_FENCED = re.compile(r"```\w*\s*(.*?)\s*```", re.DOTALL)


class Malformed(ValueError):
    """An answer that cannot be read; the message quotes its beginning."""


def describe(draft: Draft) -> str:
    """The text that goes with the picture."""
    return (
        f"Question: {draft.question}\n\nReference answer: {draft.reference}\n\nDraft: {draft.text}"
    )


def ask_again(mismatches: Sequence[tuple[Pair, int, int]]) -> str:
    """The request to mend pairs whose token counts, org's and target's, differ."""
    lines = "\n".join(
        json.dumps({"org": pair.org, "target": pair.target}, ensure_ascii=False)
        + f" has {org} tokens in org and {target} in target"
        for pair, org, target in mismatches
    )
    return (
        f"These corrections do not have equal token counts:\n{lines}\n\n"
        "Give other targets of as many tokens as their org, with org unchanged, as JSON in the "
        "same form, and leave out those that cannot be mended."
    )


def read_answer(text: str) -> tuple[Pair, ...]:
    """The pairs of an answer; none if it says `right`.

    A list of pairs is understood, one pair, and an object whose only value is such a list; in a
    code fence too, with words around it, and after a thought between <think> and </think>.

    Raises:
        Malformed: anything else.
    """
    bare = _THOUGHT.sub("", text).strip()
    if len(fenced := _FENCED.findall(bare)) == 1:
        [bare] = fenced
    if bare.strip("\"'.`*_ ").lower() == "right":
        return ()
    try:
        value = json.loads(bare)
    except (ValueError, RecursionError):
        # json has other ValueErrors too, as for an integer of thousands of digits.
        raise Malformed(f"not JSON: {text[:80]!r}") from None
    if isinstance(value, dict) and len(value) == 1:
        [value] = value.values()
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list) or not all(_is_pair(item) for item in value):
        raise Malformed(f"no list of org and target: {text[:80]!r}")
    return tuple(Pair(item["org"], item["target"]) for item in value)


def _is_pair(item: object) -> bool:
    return (
        isinstance(item, dict)
        and isinstance(item.get("org"), str)
        and isinstance(item.get("target"), str)
        and bool(item["org"].strip())
        and _is_text(item["org"] + item["target"])
    )


def _is_text(value: str) -> bool:
    """Whether UTF-8 can hold it: JSON can escape half of a surrogate pair."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
