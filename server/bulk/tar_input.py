"""Pictures of a webdataset shard: where each one lies in the tar file."""

from __future__ import annotations

import tarfile
from typing import TYPE_CHECKING

from rediff_model.files import tar
from server.bulk.item import Item, Unreadable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path


def pictures_of(path: Path, suffixes: Collection[str]) -> Iterator[Item | Unreadable]:
    """The first picture of every sample; a shard cut short gives those before the cut."""
    told: str | None = None
    try:
        for member in tar.members(path):
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
    except (OSError, tarfile.TarError) as error:
        reason = getattr(error, "strerror", None) or f"the shard is broken: {error}"
        yield Unreadable(str(path), reason)


def split_name(name: str) -> tuple[str, str]:
    """The key of a member, which ends at the first dot of its last part, and its last suffix."""
    folder, slash, last = name.rpartition("/")
    stem, _, rest = last.partition(".")
    return folder + slash + stem, "." + rest.rpartition(".")[2].lower()
