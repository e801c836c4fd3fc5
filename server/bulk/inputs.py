"""The pictures of a data set, one after another: files, folders, lists and shards."""

from __future__ import annotations

import os
import tarfile
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rediff_model.files import tar
from rediff_model.files.atomic import is_direct
from rediff_model.files.image_formats.names import SUFFIXES
from server.bulk import parquet
from server.bulk.item import BulkError, Item, Unreadable, one_line
from server.images.decode import ImageLimits

if TYPE_CHECKING:
    from collections.abc import Iterator

Naming = Literal["path", "name", "stem"]
_SHOWN = 3
"""Inputs, and kinds of files of a folder, that are named."""


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
    max_bytes: int = ImageLimits().max_bytes
    """Of a picture from a pipe, which is read at once."""
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
                parquet.check(path, self.image_column, self.id_column)

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
                total += parquet.count(path)
            elif is_direct(path):
                total += 1
            else:
                total += sum(1 for _ in self._of(path))
        return total + sum(1 for path in self.lists for _ in self._listed(path))

    def _of(self, path: Path) -> Iterator[Item | Unreadable]:
        if path.is_dir():
            return self._folder(path)
        if path.suffix.lower() == ".tar":
            return _members(path)
        if path.suffix.lower() == ".parquet":
            return parquet.pictures_of(path, self.image_column, self.id_column)
        item = self._file(path, path.name)
        return iter([self._from_pipe(item, path) if is_direct(path) else item])

    def _from_pipe(self, item: Item, path: Path) -> Item | Unreadable:
        """The item with its content: other processes may not be able to open its file."""
        try:
            with path.open("rb") as stream:
                return replace(item, content=stream.read(self.max_bytes + 1))
        except OSError as error:
            return Unreadable(str(path), error.strerror or type(error).__name__)

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


def _members(path: Path) -> Iterator[Item | Unreadable]:
    """The first picture of every sample; a shard cut short gives those before the cut."""
    told: str | None = None
    try:
        for member in tar.members(path):
            key, suffix = _split_name(member.name)
            if suffix not in SUFFIXES or member.isdir() or key == told:
                continue
            told = key
            if not member.isreg() or member.issparse():
                reason = "the shard holds a link or a sparse file in place of the picture"
                yield Unreadable(f"{path}#{member.name}", reason)
                continue
            yield Item(
                source=str(path),
                name=key,
                relative=key.lstrip("/"),
                suffix=suffix,
                member=member.name,
                offset=member.offset_data,
                size=member.size,
            )
    except (OSError, tarfile.TarError) as error:
        reason = getattr(error, "strerror", None) or f"the shard is broken: {error}"
        yield Unreadable(str(path), reason)


def _split_name(name: str) -> tuple[str, str]:
    """The key of a member, which ends at the first dot of its last part, and its last suffix."""
    folder, slash, last = name.rpartition("/")
    stem, _, rest = last.partition(".")
    return folder + slash + stem, "." + rest.rpartition(".")[2].lower()


def nothing_found(inputs: Inputs) -> str:
    """One line about inputs that gave no picture."""
    reasons = [
        *(_missing(path, inputs) for path in inputs.paths[:_SHOWN]),
        *(f"{path} lists no path" for path in inputs.lists[:_SHOWN]),
    ]
    more = len(inputs.paths) + len(inputs.lists) - len(reasons)
    return one_line("; ".join([*reasons, *([f"{more} more inputs"] if more else [])]))


def _missing(path: Path, inputs: Inputs) -> str:
    if not path.is_dir():
        return f"{path} holds no picture"
    wanted = " or ".join(inputs.globs) if inputs.globs else f"file with {', '.join(SUFFIXES)}"
    names, folders = _names(path)
    kinds = Counter(os.path.splitext(name)[1] or "without a suffix" for name in sorted(names))
    held = [f"{count} {kind}" for kind, count in kinds.most_common(_SHOWN)]
    if folders:
        held.append(f"{folders} folder{'s' * (folders > 1)}")
        held[-1] += "" if inputs.recursive else " (--recursive enters)"
    below = " or below" if inputs.recursive else ""
    return f"no {wanted} in {path}{below}, which holds {' and '.join(held) or 'nothing'}"


def _names(folder: Path) -> tuple[list[str], int]:
    """The visible files of a folder, and the number of its folders."""
    names, folders = [], 0
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith("."):
                if entry.is_dir():
                    folders += 1
                else:
                    names.append(entry.name)
    return names, folders
