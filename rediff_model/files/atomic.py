"""Files and folders that are there whole or not at all: one writer for server and training."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import stat
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, TypeGuard

if TYPE_CHECKING:
    from collections.abc import Iterator

_RUN: Final = secrets.token_hex(4)
"""Tells this process's temporary files from those of an earlier one with the same number."""
_TEMPORARY: Final = re.compile(r"\.rediff-(\d+)(?:-([0-9a-f]+)-[0-9a-f]+)?\.tmp")


@contextmanager
def replacing(path: Path, *, sync: bool = True) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces `path` when the block ends without an exception.

    Missing folders are made. A file that is replaced keeps its mode, and a link to it stays a
    link. Devices, pipes and open descriptors (`/dev/stdout`) are written to directly. With `sync`
    the new file survives a loss of power.

    Raises:
        OSError: the file cannot be written; names `path`.
    """
    temporary: Path | None = None
    try:
        target = _target(path)
        if target is None:
            with _open_directly(path) as stream:
                yield stream
            return
        temporary = target.with_name(f".rediff-{os.getpid()}-{_RUN}-{secrets.token_hex(4)}.tmp")
        with _create(temporary, path.parent) as stream:
            with suppress(OSError):
                os.fchmod(stream.fileno(), stat.S_IMODE(target.stat().st_mode))
            yield stream
            stream.flush()
            if sync:
                os.fsync(stream.fileno())
        temporary.replace(target)
        if sync:
            _sync_folder(target.parent)
    except BaseException as error:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        # Nobody asked for the temporary file: name the file itself.
        if _is_unnamed(error, temporary):
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


def write_text(path: Path, text: str, *, sync: bool = False) -> None:
    """Write a text file as `replacing` does; by default without waiting for the disk."""
    for attempt in range(2):
        try:
            with replacing(path, sync=sync) as stream:
                stream.write(text.encode())
            return
        except FileNotFoundError:
            # A run on another machine cannot see that this process lives, and may have swept its
            # temporary file.
            if attempt:
                raise


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, as `write_text` does."""
    write_text(path, json.dumps(value, indent=2) + "\n")


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Make a temporary folder that replaces `path` when the block ends without an exception.

    Between two renames there is no folder of that name. A link to a folder stays a link.

    Raises:
        OSError: the folder cannot be made or replaced.
    """
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".rediff-", dir=target.parent) as scratch:
        fresh, old = Path(scratch) / "fresh", Path(scratch) / "old"
        fresh.mkdir()
        yield fresh
        if target.exists():
            target.rename(old)
        try:
            fresh.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise


def is_direct(path: Path) -> bool:
    """Return whether `replacing` would write to `path` directly: a device, pipe or descriptor."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) or _descriptor(path) is not None


def sweep(folder: Path) -> None:
    """Remove temporary files that killed processes left in a folder."""
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        for entry in entries:
            match = _TEMPORARY.fullmatch(entry.name)
            if match is not None and match[2] != _RUN and not _lives(int(match[1])):
                with suppress(FileNotFoundError):
                    Path(entry.path).unlink()


def _target(path: Path) -> Path | None:
    """The plain file, behind links, that is replaced; None if `path` is written to directly."""
    with suppress(FileNotFoundError):
        if stat.S_ISDIR(path.stat().st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    return None if is_direct(path) else Path(os.path.realpath(path))


def _is_unnamed(error: BaseException, temporary: Path | None) -> TypeGuard[OSError]:
    if not isinstance(error, OSError) or error.errno is None:
        return False
    return error.filename in (None, str(temporary))


def _descriptor(path: Path) -> int | None:
    """The number of the open descriptor that `path` stands for, such as 1 for `/dev/stdout`."""
    name = os.path.abspath(path)
    while True:
        match = re.fullmatch(rf"/(?:dev|proc/(?:self|{os.getpid()}))/fd/(\d+)", name)
        if match is not None:
            return int(match[1])
        if not os.path.islink(name):
            return None
        name = os.path.abspath(os.path.join(os.path.dirname(name), os.readlink(name)))


def _open_directly(path: Path) -> BinaryIO:
    number = _descriptor(path)
    # A descriptor that is opened anew would start at the beginning of its file.
    return path.open("wb") if number is None else os.fdopen(os.dup(number), "wb")


def _create(temporary: Path, folder: Path) -> BinaryIO:
    try:
        return temporary.open("wb")
    except FileNotFoundError:
        folder.mkdir(parents=True, exist_ok=True)
        return temporary.open("wb")


def _sync_folder(folder: Path) -> None:
    # Not every file system can do it.
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _lives(process: int) -> bool:
    """Whether another process of this number runs here."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
