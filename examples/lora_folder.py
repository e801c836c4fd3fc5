"""Prepare pictures for the training of a LoRA, in the layout that kohya's scripts read.

    python examples/lora_folder.py PICTURES train_data "ohwx duck" 10

makes train_data/10_ohwx duck/ with every picture and beside it a .txt of the same name: the words
that call the LoRA, a comma, and the caption. 10 is how often an epoch repeats each picture.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from server.client import Client

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}


def main(
    pictures: str, out: str, words: str, repeats: str, server: str = "http://127.0.0.1:8000"
) -> None:
    folder = Path(out, f"{int(repeats)}_{words}")
    folder.mkdir(parents=True)
    with Client(server) as client:
        for path in sorted(Path(pictures).iterdir()):
            if path.suffix.lower() not in SUFFIXES:
                continue
            caption = client.caption(path).caption
            shutil.copy(path, folder)
            (folder / f"{path.stem}.txt").write_text(f"{words}, {caption}\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
