"""Caption a folder, and set apart what the model is least sure of.

    python examples/filter_by_confidence.py FOLDER 0.9

Captions whose mean token probability is at least 0.9 go to sure.jsonl in the folder, the others to
doubtful.jsonl, with the words that are least likely: those are what to look at.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from server.client import Client

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
WORDS = 3


def main(folder: str, least: str, server: str = "http://127.0.0.1:8000") -> None:
    sure, doubtful = (Path(folder, name) for name in ("sure.jsonl", "doubtful.jsonl"))
    with Client(server) as client, sure.open("w") as kept, doubtful.open("w") as apart:
        for path in sorted(Path(folder).iterdir()):
            if path.suffix.lower() not in SUFFIXES:
                continue
            answer = client.caption(path, return_tokens=True)
            confidence = answer.caption_confidence or 0.0
            line = {"file": path.name, "caption": answer.caption, "confidence": confidence}
            if confidence < float(least):
                words = sorted(answer.words or [], key=lambda word: word.confidence)
                line["doubtful"] = [word.text for word in words[:WORDS]]
            file = apart if "doubtful" in line else kept
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
