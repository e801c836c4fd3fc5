"""Members of uncompressed tar files: one reader for captions and for training."""

from __future__ import annotations

import tarfile
from typing import TYPE_CHECKING, BinaryIO, Final

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

_BROKEN: Final = (ValueError, OverflowError, RecursionError, MemoryError)
"""What tarfile raises at absurd header fields, besides its own errors."""
_CHUNK: Final = 2048 * tarfile.BLOCKSIZE


def members(path: Path) -> Iterator[tarfile.TarInfo]:
    """Yield the members of a tar file in order; reads headers only.

    Archives joined end to end are one archive, as `tar --ignore-zeros` reads them. Files that
    macOS adds beside the real ones (resource forks, folder settings) are left out.

    Raises:
        OSError: the file cannot be read.
        tarfile.TarError: it is compressed, cut short or damaged. Members before the damage have
            been yielded.
    """
    with path.open("rb") as stream:
        start: int | None = 0
        while start is not None:
            stream.seek(start)
            end = yield from _archive(stream)
            start = _next_archive(stream, end)


def _archive(stream: BinaryIO) -> Generator[tarfile.TarInfo, None, int]:
    """Yield the members of the archive at the stream's position; returns where it ends."""
    try:
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            for member in archive:
                if member.size < 0:
                    # It would lead back to an earlier member, without end.
                    raise tarfile.ReadError(f"a member has {member.size} bytes: {member.name}")
                if not _is_macos_extra(member.name):
                    yield member
            return archive.offset
    except _BROKEN as error:
        raise tarfile.ReadError(str(error)) from None


def _next_archive(stream: BinaryIO, end: int) -> int | None:
    """Where the archive behind the zeros at `end` begins; None at the end of the file.

    Raises:
        tarfile.ReadError: no block of zeros ends the archive: tarfile takes a header that is cut
            or overwritten for the end.
    """
    stream.seek(end)
    if stream.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"it is cut or overwritten at byte {end}")
    place = end + tarfile.BLOCKSIZE
    while chunk := stream.read(_CHUNK):
        zeros = len(chunk) - len(chunk.lstrip(tarfile.NUL))
        if zeros < len(chunk):
            return place + zeros - zeros % tarfile.BLOCKSIZE
        place += len(chunk)
    return None


def _is_macos_extra(name: str) -> bool:
    *folders, last = name.split("/")
    return last.startswith("._") or last == ".DS_Store" or "__MACOSX" in folders
