"""Where captions go: what a run needs of an output, standard output, and text files."""

from __future__ import annotations

import errno
import stat
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final, Protocol

from rediff_model.files.atomic import sweep, write_text
from server.bulk.item import PictureError, one_line, utf8
from server.terminal import json_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.bulk.item import Captioned, Item


class Output(Protocol):
    """Takes captions in the order of the inputs."""

    @property
    def once(self) -> bool:
        """True if a picture that is named twice is captioned once."""
        ...

    def refusal(self, item: Item) -> str | None:
        """Why there is no place for this picture's caption, such as a name that is taken."""
        ...

    def is_done(self, item: Item) -> bool:
        """Whether the caption is there from a run before. Asked after `refusal`."""
        ...

    def add(self, item: Item, caption: Captioned) -> None:
        """Keep a caption so that it outlives the process."""
        ...

    def finish(self) -> None:
        """Nothing more comes: give the output its final form."""
        ...

    def close(self) -> None:
        """Let go of files; without `finish` before, a later run goes on."""
        ...


class Doubt:
    """Which captions go to the second output."""

    def __init__(self, min_confidence: float | None) -> None:
        self._least = min_confidence

    @property
    def active(self) -> bool:
        """Whether there is a limit."""
        return self._least is not None

    def __call__(self, confidence: float) -> bool:
        """Whether a confidence is below the limit, if there is one."""
        return self._least is not None and confidence < self._least


class Printed:
    """The caption alone when there is one file, else `FILE: caption`, or JSON."""

    once = False

    def __init__(self, echo: Callable[[str], None], *, alone: bool, as_json: bool) -> None:
        """`echo` prints a line."""
        self._echo = echo
        self._alone = alone
        self.as_json = as_json

    def refusal(self, item: Item) -> str | None:
        return None

    def is_done(self, item: Item) -> bool:
        return False

    def add(self, item: Item, caption: Captioned) -> None:
        if self.as_json:
            row = {
                "file": utf8(item.source),
                "caption": caption.text,
                "finish_reason": caption.finish_reason,
                "steps": caption.steps,
                "revisions": caption.revisions,
            }
            if caption.warning:
                row["warnings"] = [caption.warning]
            self._echo(json_line(row))
        else:
            name = one_line(item.source)
            self._echo(caption.text if self._alone else f"{name}: {caption.text}")

    def failed(self, name: str, source: str, reason: str) -> None:
        """Print a failure as JSON."""
        self._echo(json_line({"file": utf8(source), "error": reason}))

    def finish(self) -> None:
        """Every line is out."""

    def close(self) -> None:
        """Nothing is open."""


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

    once = True

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

    def refusal(self, item: Item) -> str | None:
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

    def is_done(self, item: Item) -> bool:
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
