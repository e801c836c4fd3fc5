"""Members of uncompressed tar shards, found once and then read in any order."""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rediff_model.files import tar
from training.data.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from training.data.problems import Report


@dataclass(frozen=True, slots=True)
class Member:
    """A run of bytes in a file."""

    path: Path
    name: str
    offset: int
    length: int

    @property
    def where(self) -> str:
        return f"{self.path}:{self.name}"

    def read(self) -> bytes:
        """The bytes; opens the file each time, so that loader processes share nothing."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.length)


def members(shards: Iterable[Path], report: Report) -> Iterator[Member]:
    """The files of tar shards in order; reads headers only.

    A shard that is broken, or compressed, is reported, and gives the members before the damage.
    """
    for path in shards:
        try:
            for entry in tar.members(path):
                if entry.isfile():
                    yield Member(path, entry.name, entry.offset_data, entry.size)
        except (OSError, tarfile.TarError) as error:
            report.add(Problem("malformed", str(path), f"not a whole, plain tar file: {error}"))


def by_name(found: Iterable[Member]) -> dict[str, Member]:
    """Members by name, by `shard/name` and by the shard's whole path; a name that several have
    stands for none."""
    index: dict[str, Member] = {}
    twice: set[str] = set()
    for member in found:
        index[f"{member.path}/{member.name}"] = member
        for name in {f"{member.path.name}/{member.name}", member.name}:
            if name in index and index[name] != member:
                twice.add(name)
            index[name] = member
    for name in twice:
        del index[name]
    return index
