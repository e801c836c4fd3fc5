"""Caption a data set of the Hugging Face hub, or a folder with its parquet files.

    python examples/caption_hub_dataset.py NAME_OR_FOLDER captions.jsonl

The server that runs at http://127.0.0.1:8000 (or the third argument) is asked for sixteen
captions at a time, and batches them. It needs pyarrow: `pip install "rediff-serve[data]"`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from huggingface_hub import HfFileSystem
from pyarrow.dataset import dataset

from server.client import AsyncClient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from server.client import CaptionAnswer

AT_A_TIME = 16
COLUMN = "image"
"""Pictures of the hub are columns of `bytes` and `path`."""


def pictures(name: str) -> Iterator[list[bytes]]:
    """The picture files of all rows, a few rows at a time."""
    if Path(name).is_dir():
        rows = dataset(name, format="parquet")
    else:
        # The hub turns every data set into parquet.
        rows = dataset(f"datasets/{name}@~parquet", format="parquet", filesystem=HfFileSystem())
    for batch in rows.to_batches(columns=[COLUMN], batch_size=AT_A_TIME):
        yield [row["bytes"] for row in batch[COLUMN].to_pylist()]


async def captions(name: str, server: str) -> AsyncIterator[CaptionAnswer]:
    """The captions of all rows, in their order."""
    async with AsyncClient(server) as client:
        for batch in pictures(name):
            asked = (client.caption(picture, return_tokens=True) for picture in batch)
            for answer in await asyncio.gather(*asked):
                yield answer


async def main(name: str, lines: TextIO, server: str = "http://127.0.0.1:8000") -> None:
    row = 0
    async for answer in captions(name, server):
        line = {"row": row, "caption": answer.caption, "confidence": answer.caption_confidence}
        lines.write(json.dumps(line, ensure_ascii=False) + "\n")
        row += 1


if __name__ == "__main__":
    name, out, *server = sys.argv[1:]
    with Path(out).open("w", encoding="utf-8") as lines:
        asyncio.run(main(name, lines, *server))
