"""Webdataset shards: every picture with its caption and its row, a thousand in a tar file."""

from __future__ import annotations

import json
import os
import re
import tarfile
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from rediff_model.files.lock import lock
from server.bulk.item import read

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from server.bulk.item import Captioned, Item
    from server.bulk.outputs import Doubt

_BLOCK: Final = 512
_SHARD: Final = re.compile(r"\d{6}\.tar")
_PART: Final = "part.rediff"
"""The shard that is being filled."""


class Shards:
    """One folder of shards, and one more for doubtful captions."""

    once = True

    def __init__(
        self,
        folder: Path,
        doubtful: Path | None,
        doubt: Doubt,
        shard_size: int,
        max_bytes: int,
        *,
        overwrite: bool,
    ) -> None:
        """`max_bytes` bounds a picture's file; `overwrite` removes shards of earlier runs.

        Raises:
            Locked: another run writes to one of the folders.
        """
        self._max_bytes = max_bytes
        self._doubt = doubt
        self._plain = ShardWriter(folder, shard_size, overwrite=overwrite)
        self._doubtful = (
            None if doubtful is None else ShardWriter(doubtful, shard_size, overwrite=overwrite)
        )

    def refusal(self, item: Item) -> str | None:
        return None

    def is_done(self, item: Item) -> bool:
        return any(item.identity in writer.sources for writer in self._writers)

    def add(self, item: Item, caption: Captioned) -> None:
        """Raises PictureError when the picture is no longer there."""
        doubtful = self._doubtful if self._doubt(caption.confidence) else None
        row = caption.row(item)
        (doubtful or self._plain).append(item.suffix, read(item, self._max_bytes), row)

    def finish(self) -> None:
        for writer in self._writers:
            writer.seal()

    def close(self) -> None:
        for writer in self._writers:
            writer.close()

    @property
    def _writers(self) -> list[ShardWriter]:
        return [writer for writer in (self._plain, self._doubtful) if writer is not None]


class ShardWriter:
    """Fills one shard after the other. The samples in them are what a later run goes on from."""

    def __init__(self, folder: Path, shard_size: int, *, overwrite: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._shard_size = shard_size
        self._part = (folder / _PART).open("a+b")
        try:
            lock(self._part, folder)
            if overwrite:
                self._part.truncate(0)
                for shard in shards_in(folder):
                    shard.unlink()
            self.sources: set[str] = set()
            self._before = 0
            shards = shards_in(folder)
            for shard in shards:
                with shard.open("rb") as stream:
                    self._before += sum(1 for _ in self._samples(stream))
            self._next = int(shards[-1].stem) + 1 if shards else 0
            ends = list(self._samples(self._part))
            self._in_part = len(ends)
            # Behind the last whole sample there may be a part of one.
            self._part.truncate(ends[-1] if ends else 0)
        except BaseException:
            self._part.close()
            raise

    def _samples(self, stream: BinaryIO) -> Iterator[int]:
        """Where each whole sample of a shard ends; notes what they were made from."""
        stream.seek(0, os.SEEK_END)
        length = stream.tell()
        stream.seek(0)
        try:
            with tarfile.open(fileobj=stream, mode="r:") as archive:
                for member in archive:
                    end = member.offset_data + _padded(member.size)
                    if member.name.endswith(".json") and end <= length:
                        content = archive.extractfile(member)
                        assert content is not None
                        self.sources.add(json.loads(content.read())["source"])
                        yield end
        # The end of a part that was cut somewhere; one that is empty is no archive either.
        except (tarfile.TarError, OSError, ValueError):
            return

    def append(self, suffix: str, picture: bytes, row: dict[str, Any]) -> None:
        """Add a sample. Its row is the last member, which shows that the sample is whole."""
        key = f"{self._before + self._in_part:08d}"
        members = {
            suffix or ".bin": picture,
            ".txt": row["caption"].encode(),
            ".json": json.dumps(row).encode(),
        }
        self._part.write(b"".join(_member(key + end, data) for end, data in members.items()))
        self._part.flush()
        self.sources.add(row["source"])
        self._in_part += 1
        if self._in_part == self._shard_size:
            self.seal()
            self._part = (self._folder / _PART).open("a+b")
            lock(self._part, self._folder)

    def seal(self) -> None:
        """Give the shard that is being filled its end and its name; an empty one goes."""
        if self._in_part:
            self._part.write(bytes(2 * _BLOCK))
            self._part.flush()
            os.fsync(self._part.fileno())
            (self._folder / _PART).rename(self._folder / f"{self._next:06d}.tar")
        else:
            (self._folder / _PART).unlink()
        self._part.close()
        self._next += 1
        self._before += self._in_part
        self._in_part = 0

    def close(self) -> None:
        """Keep the shard that is being filled for a run that goes on."""
        self._part.close()


def shards_in(folder: Path) -> list[Path]:
    """The finished shards, in order."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _SHARD.fullmatch(path.name))


def holds_any(folder: Path) -> bool:
    """Whether a run has begun to write there."""
    return bool(shards_in(folder)) or (folder / _PART).exists()


def _member(name: str, data: bytes) -> bytes:
    """A member of a tar file, the same whenever and by whomever it is written."""
    header = tarfile.TarInfo(name)
    header.size = len(data)
    head = header.tobuf(tarfile.PAX_FORMAT)
    return head + data + bytes(_padded(len(data)) - len(data))


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK
