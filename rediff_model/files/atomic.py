"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import re
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_TEMPORARY: Final = re.compile(r"\.rediff-(\d+)\.tmp")


def temporary_in(folder: Path) -> Path:
    """Where this process writes a file of the folder before it gets its name.

    Only one at a time in a folder. The name is short, so that a name of the full length that the
    file system allows can be written too.
    """
    return folder / f".rediff-{os.getpid()}.tmp"


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of `path` at the end, safe from a loss of power."""
    temporary = temporary_in(path.parent)
    try:
        with temporary.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """A small file, whole even if the process is killed; not waiting for the disk."""
    temporary = temporary_in(path.parent)
    for attempt in range(2):
        try:
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(path)
            return
        except FileNotFoundError:
            # The first of its folder; or a run on another machine, which cannot see that this
            # process lives, took the temporary for a stale one.
            if attempt:
                raise
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            # Nobody asked for the temporary: name the file itself.
            raise OSError(error.errno, error.strerror, str(path)) from None
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def sweep(folder: Path) -> None:
    """Remove temporaries that killed runs left. Nothing of this process may be in work there."""
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        for entry in entries:
            match = _TEMPORARY.fullmatch(entry.name)
            if match is not None and not _lives(int(match.group(1))):
                with suppress(FileNotFoundError):
                    Path(entry.path).unlink()


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
