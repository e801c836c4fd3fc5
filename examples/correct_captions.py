"""Correct the captions of a data set against its pictures.

    python examples/correct_captions.py captions.jsonl corrected.jsonl

Each line of captions.jsonl has `file`, a path beside it, and `caption`. Each line of
corrected.jsonl has the corrected caption, and the words that were replaced with what stands there
now.
"""

from __future__ import annotations

import json
import sys
from difflib import SequenceMatcher
from pathlib import Path

from server.client import Client


def changes(before: str, after: str) -> list[tuple[str, str]]:
    """The words that differ, as (before, after)."""
    old, new = before.split(), after.split()
    matcher = SequenceMatcher(None, old, new, autojunk=False)
    return [
        (" ".join(old[first:last]), " ".join(new[start:end]))
        for what, first, last, start, end in matcher.get_opcodes()
        if what != "equal"
    ]


def main(source: str, out: str, server: str = "http://127.0.0.1:8000") -> None:
    rows = [json.loads(line) for line in Path(source).read_text("utf-8").splitlines()]
    with Client(server) as client, Path(out).open("w", encoding="utf-8") as lines:
        for row in rows:
            picture = Path(source).parent / row["file"]
            answer = client.refine(picture, row["caption"])
            changed = changes(row["caption"], answer.caption)
            line = row | {"caption": answer.caption, "changed": changed}
            lines.write(json.dumps(line, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
