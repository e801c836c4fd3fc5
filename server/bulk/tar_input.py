"""Pictures of a webdataset shard: where each one lies in the tar file."""

from __future__ import annotations

import tarfile
from typing import TYPE_CHECKING, Final

from server.bulk.item import Item, Unreadable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

_BROKEN: Final = (OSError, ValueError, OverflowError, RecursionError, MemoryError)
"""What tarfile raises at fields that nobody would write, besides errors of its own."""


def pictures_of(path: Path, suffixes: Collection[str]) -> Iterator[Item | Unreadable]:
    """The first picture of every sample; a shard cut short gives those before the cut."""
    told: str | None = None
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.size < 0:
                    # It would lead back to where tarfile has been, for ever.
                    raise tarfile.ReadError(f"a member has {member.size} bytes")
                key, suffix = split_name(member.name)
                if suffix not in suffixes or member.isdir() or key == told:
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
            _check_end(path, archive.offset)
    except (*_BROKEN, tarfile.TarError) as error:
        reason = getattr(error, "strerror", None) or f"the shard is broken: {error}"
        yield Unreadable(str(path), reason)


def _check_end(path: Path, offset: int) -> None:
    """Raise ReadError unless the blocks of zeros that end a tar file are at this byte.

    To tarfile a header that is cut or overwritten is the end, if it is not the first one.
    """
    with path.open("rb") as stream:
        stream.seek(offset)
        if stream.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            raise tarfile.ReadError(f"it is cut or overwritten at byte {offset}")


def split_name(name: str) -> tuple[str, str]:
    """The key of a member, which ends at the first dot of its last part, and its last suffix."""
    folder, slash, last = name.rpartition("/")
    stem, _, rest = last.partition(".")
    return folder + slash + stem, "." + rest.rpartition(".")[2].lower()
