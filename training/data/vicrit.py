"""ViCrit rows (zyang39/ViCrit-Train, arXiv 2506.10128) as rows with one correction each.

A row has `image` or `image_path`, `original_caption` (right), `changed_caption` (with one error),
and `solution_original` and `solution_target`, the segments that differ. The segments are found by
comparing the captions, so the last two are not needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rediff_model.chat_template import DEFAULT_QUESTION
from training.correction.records import write_records
from training.data.conversation import IMAGE_TAG
from training.data.problems import BadRow
from training.data.row_files import values
from training.data.segment_labels import Segment, correct

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from tokenizers import Tokenizer

    from training.data.problems import Report


def prepare_vicrit(
    rows: Iterable[tuple[str, object]],
    tokenizer: Tokenizer,
    report: Report,
    question: str = DEFAULT_QUESTION,
) -> Iterator[dict[str, Any]]:
    """Conversation rows, as `rows.parse_row` reads them, from ViCrit rows with where they stood.

    The answer is the changed caption, the correction spans the words that differ. Rows go to
    `report` that are malformed, whose captions are `identical`, or whose correction has another
    number of tokens (`unequal`).
    """
    for where, row in rows:
        try:
            yield _prepare(row, where, tokenizer, question)
        except BadRow as error:
            report.add(error.problem)


def convert(path: Path, tokenizer: Tokenizer, out: Path, question: str, report: Report) -> int:
    """Write the usable rows of a ViCrit file to `out`, whole; returns how many they are.

    Raises:
        OSError: `path` cannot be read, or `out` not written.
        ValueError: they are the same file, or `out` is a folder.
    """
    if out.is_dir():
        raise ValueError(f"{out} is a folder: name a file for the rows")
    if out.exists() and out.samefile(path):
        raise ValueError(f"{out} is what is read: the rows must go to another file")
    count = 0

    def prepared() -> Iterator[dict[str, Any]]:
        nonlocal count
        for row in prepare_vicrit(
            values(path, "changed_caption", report), tokenizer, report, question
        ):
            count += 1
            yield row

    write_records(out, prepared())
    return count


def _prepare(row: object, where: str, tokenizer: Tokenizer, question: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise BadRow("malformed", where, f"a row must be an object, got {type(row).__name__}")
    image = _text(row, "image" if row.get("image") is not None else "image_path", where)
    right = _text(row, "original_caption", where)
    wrong = _text(row, "changed_caption", where)
    for name, text in (("original_caption", right), ("changed_caption", wrong)):
        if IMAGE_TAG in text:
            raise BadRow(
                "malformed", where, f"{name} holds {IMAGE_TAG}, which stands for a picture"
            )
    start, end, target = difference(wrong, right)
    _, problems = correct(wrong, [Segment(0, start, end, target)], tokenizer, where)
    if problems:
        raise BadRow(problems[0].kind, where, problems[0].reason)
    return {
        "image": image,
        "conversations": [
            {"from": "human", "value": f"{IMAGE_TAG}\n{question}"},
            {"from": "gpt", "value": wrong},
        ],
        "revise": [{"org": wrong[start:end], "target": target, "start": start}],
    }


def _text(row: Mapping[str, object], name: str, where: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise BadRow("malformed", where, f"{name} must be text, got {value!r:.80}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        reason = f"{name} is no Unicode text at character {error.start}"
        raise BadRow("malformed", where, reason) from None
    return value.strip()


def difference(wrong: str, right: str) -> tuple[int, int, str]:
    """The least run of whole words of `wrong`, as [start, end), and what replaces it in `right`.

    The run is empty where `right` only adds words, or is the same.
    """
    shared = min(len(wrong), len(right))
    head = next((i for i in range(shared) if wrong[i] != right[i]), shared)
    tail = next((i for i in range(shared - head) if wrong[-1 - i] != right[-1 - i]), shared - head)
    while head and (_inside(wrong, head) or _inside(right, head)):
        head -= 1
    while tail and (_inside(wrong, len(wrong) - tail) or _inside(right, len(right) - tail)):
        tail -= 1
    return head, len(wrong) - tail, right[head : len(right) - tail]


def _inside(text: str, at: int) -> bool:
    return 0 < at < len(text) and text[at - 1].isalnum() and text[at].isalnum()
