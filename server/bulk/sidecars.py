"""A text file for every picture, beside it or in a folder of the same shape."""

from __future__ import annotations

import errno
import stat
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

from rediff_model.files.atomic import sweep, write_text
from server.bulk.pictures import PictureError

if TYPE_CHECKING:
    from server.bulk.item import Captioned, Item
    from server.bulk.output import Doubt

_OF_THE_NAME: Final = frozenset(
    {
        errno.EEXIST,
        errno.EILSEQ,
        errno.EINVAL,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENOTDIR,
    }
)
"""A picture's own failures; a full disk or a forbidden folder would be that of all."""


class Sidecars:
    """`a.txt` for `a.jpg`; the doubtful ones go to `a.doubtful.txt`, or to a folder."""

    def __init__(
        self, folder: Path | None, doubtful: Path | None, doubt: Doubt, *, overwrite: bool
    ) -> None:
        """Without `folder` the files lie beside the pictures."""
        self._folder = folder
        self._doubtful = doubtful
        self._doubt = doubt
        self._overwrite = overwrite
        self._owners: dict[Path, str] = {}
        self._swept: set[Path] = set()

    def refuses(self, item: Item) -> str | None:
        if self._folder is None and item.member:
            return "a shard has no place for sidecars: name a folder with --out"
        below = PurePosixPath(item.relative)
        if ".." in below.parts or not below.name:
            return "its name leads out of the folder of the sidecars"
        paths = self._paths(item)
        if Path(item.source) in paths:
            return "its sidecar would be the file itself"
        for path in paths:
            owner = self._owners.setdefault(path, item.identity)
            if owner != item.identity:
                return f"its sidecar {path} is that of {owner}"
        return next(filter(None, map(_taken, paths)), None)

    def holds(self, item: Item) -> bool:
        paths = self._paths(item)
        for folder in {path.parent for path in paths} - self._swept:
            sweep(folder)
            self._swept.add(folder)
        return not self._overwrite and any(path.exists() for path in paths)

    def add(self, item: Item, caption: Captioned) -> None:
        """Raises PictureError when the sidecar's name cannot be that of a file."""
        paths = self._paths(item)
        chosen = paths[-1 if self._doubt(caption.confidence) else 0]
        try:
            write_text(chosen, caption.text + "\n")
        except OSError as error:
            if error.errno not in _OF_THE_NAME:
                raise
            raise PictureError(_cannot(chosen, error.strerror)) from None
        for other in paths:
            if other != chosen:
                # Left by a run with another limit: a picture has one caption.
                other.unlink(missing_ok=True)

    def finish(self) -> None:
        """Every file has its form."""

    def close(self) -> None:
        """No file is open."""

    def _paths(self, item: Item) -> tuple[Path, ...]:
        """Where a caption goes, and where a doubtful one does if there can be any."""
        if self._folder is None:
            plain = _with(Path(item.source).with_suffix(""), ".txt")
        else:
            plain = _with(self._folder / item.relative, ".txt")
        if not self._doubt.active:
            return (plain,)
        if self._doubtful is None:
            return plain, _with(plain.with_suffix(""), ".doubtful.txt")
        return plain, _with(self._doubtful / item.relative, ".txt")


def _taken(path: Path) -> str | None:
    """Why a file of this name cannot be written, as far as the file system says so already."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            return _cannot(path, "it is a folder")
        return None if stat.S_ISREG(mode) else _cannot(path, "it is no plain file")
    except FileNotFoundError:
        return None
    except ValueError as error:
        return _cannot(path, str(error))
    except OSError as error:
        if error.errno not in _OF_THE_NAME:
            raise
        return _cannot(path, error.strerror)


def _cannot(path: Path, reason: str | None) -> str:
    return f"its sidecar {path} cannot be written: {reason}"


def _with(path: Path, suffix: str) -> Path:
    """The path with a suffix behind whatever it ends with."""
    return path.with_name(path.name + suffix)
