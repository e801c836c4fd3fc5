"""The pictures of a data set, one after another: files, folders, lists and shards."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rediff_model.files.image_formats.names import SUFFIXES
from server.bulk import parquet_input, tar_input
from server.bulk.item import BulkError, Item, Unreadable

if TYPE_CHECKING:
    from collections.abc import Iterator

Naming = Literal["path", "name", "stem"]


def is_data_set(path: Path) -> bool:
    """Whether a path stands for several pictures."""
    return path.suffix.lower() in (".tar", ".parquet") or path.is_dir()


@dataclass(frozen=True, slots=True)
class Inputs:
    """Where pictures come from, in the order in which they are taken."""

    paths: tuple[Path, ...] = ()
    """Pictures, folders, webdataset shards (.tar) and parquet files."""
    lists: tuple[Path, ...] = ()
    """Files with a path a line."""
    recursive: bool = False
    globs: tuple[str, ...] = ()
    """Patterns of names or of paths below a folder, instead of the usual suffixes."""
    naming: Naming = "path"
    """What a picture of a file is called: its path below the folder, its name, or that without
    the suffix."""
    image_column: str = "image"
    id_column: str | None = None

    def check(self) -> None:
        """Refuse what can be seen to be wrong before a model is loaded.

        Raises:
            BulkError: a folder, a list, a shard or a column that is not there.
        """
        for path in (*self.lists, *(path for path in self.paths if is_data_set(path))):
            if not path.exists():
                raise BulkError(f"{path}: No such file or directory")
        for path in self.paths:
            # A folder's misspelt name, rather than a picture that has gone.
            if path.suffix.lower() not in SUFFIXES and not os.path.lexists(path):
                raise BulkError(f"{path}: No such file or directory")
            if path.suffix.lower() == ".parquet" and path.is_file():
                parquet_input.check(path, self.image_column, self.id_column)

    def __iter__(self) -> Iterator[Item | Unreadable]:
        for path in self.paths:
            yield from self._of(path)
        for path in self.lists:
            yield from self._listed(path)

    def count(self) -> int | None:
        """How many there are, if that can be known. Walks everywhere, but reads no picture."""
        # What is read from a pipe to be counted would be missing from the run.
        if any(path.exists() and not path.is_file() for path in self.lists):
            return None
        total = 0
        for path in self.paths:
            if path.suffix.lower() == ".parquet" and path.is_file():
                total += parquet_input.count(path)
            else:
                total += sum(1 for _ in self._of(path))
        return total + sum(1 for path in self.lists for _ in self._listed(path))

    def _of(self, path: Path) -> Iterator[Item | Unreadable]:
        if path.is_dir():
            return self._folder(path)
        if path.suffix.lower() == ".tar":
            return tar_input.pictures_of(path, SUFFIXES)
        if path.suffix.lower() == ".parquet":
            return parquet_input.pictures_of(path, self.image_column, self.id_column)
        return iter([self._file(path, path.name)])

    def _folder(self, root: Path) -> Iterator[Item | Unreadable]:
        """Files in the order of their names, then folders. Links are followed, a folder that was
        walked is not walked again."""
        left = [(root, "")]
        walked: set[tuple[int, int]] = set()
        while left:
            folder, below = left.pop()
            try:
                status = folder.stat()
                if (status.st_dev, status.st_ino) in walked:
                    continue
                walked.add((status.st_dev, status.st_ino))
                with os.scandir(folder) as entries:
                    found = sorted((entry.name, _kind(entry)) for entry in entries)
            except OSError as error:
                yield Unreadable(str(folder), error.strerror or type(error).__name__)
                continue
            for name, kind in found:
                if kind != "folder" and self._wants(name, below + name):
                    yield self._file(folder / name, below + name)
                elif kind == "lost" and self.recursive and not name.startswith("."):
                    # Perhaps to a folder of pictures, on a disk that is not there.
                    yield Unreadable(str(folder / name), "it is a link that leads nowhere")
            if self.recursive:
                left += [
                    (folder / name, f"{below}{name}/")
                    for name, kind in reversed(found)
                    if kind == "folder" and not name.startswith(".")
                ]

    def _wants(self, name: str, below: str) -> bool:
        # Other systems leave files such as ._picture.jpg, which are no pictures.
        if name.startswith("."):
            return False
        if self.globs:
            return any(fnmatch(name, glob) or fnmatch(below, glob) for glob in self.globs)
        return name.lower().endswith(SUFFIXES)

    def _listed(self, path: Path) -> Iterator[Item | Unreadable]:
        try:
            # Some editors put a mark before the first path.
            with path.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
                for line in lines:
                    if listed := line.rstrip("\r\n"):
                        yield self._file(Path(listed), listed)
        except OSError as error:
            yield Unreadable(str(path), error.strerror or type(error).__name__)

    def _file(self, path: Path, below: str) -> Item:
        names = {"path": below, "name": path.name, "stem": path.stem}
        suffix = path.suffix
        return Item(
            source=str(path),
            name=names[self.naming],
            relative=_inside(below.removesuffix(suffix)),
            suffix=suffix.lower(),
        )


def _kind(entry: os.DirEntry[str]) -> Literal["file", "folder", "lost"]:
    """What an entry of a folder is; "lost" is a link that leads nowhere."""
    with suppress(OSError):
        if entry.is_dir():
            return "folder"
        if not entry.is_symlink() or os.path.exists(entry.path):
            return "file"
    return "lost"


def _inside(path: str) -> str:
    """The path without what would lead out of a folder: `/a`, `../a` and `b/../a` become `a`."""
    return "/".join(
        part for part in os.path.normpath(path).split("/") if part not in ("", "..", ".")
    )
