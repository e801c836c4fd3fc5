"""Pictures of a webdataset shard: where each one lies in the tar file."""

from __future__ import annotations

import tarfile
from typing import TYPE_CHECKING

from server.bulk.item import Item, Unreadable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path


def pictures_of(path: Path, suffixes: Collection[str]) -> Iterator[Item | Unreadable]:
    """The first picture of every sample; a shard cut short gives those before the cut."""
    told: str | None = None
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                key, suffix = split_name(member.name)
                picture = suffix in suffixes and member.isreg() and not member.issparse()
                if not picture or key == told:
                    continue
                told = key
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
    except (OSError, tarfile.TarError) as error:
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
