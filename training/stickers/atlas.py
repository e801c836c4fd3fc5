"""The atlas: named pictures by several vendors, cut from one sheet a vendor."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FOLDER = Path(__file__).parent / "atlas"
"""The atlas of the training vendors."""


@dataclass(frozen=True, slots=True)
class Atlas:
    """Pictures of every class by every vendor. All vendors have the same classes."""

    names: tuple[str, ...]
    vendors: tuple[str, ...]
    pictures: Mapping[tuple[str, str], Image.Image]
    """RGBA pictures by (vendor, name); shared, so copy one before drawing on it."""

    @classmethod
    def load(cls, folder: Path | None = None, vendors: Sequence[str] | None = None) -> Atlas:
        """Read `classes.json` and the sheets of `vendors` (default: all) in `folder`.

        Raises FileNotFoundError if the folder lacks a file, ValueError for an unknown vendor or a
        sheet that is too small for the classes.
        """
        folder = FOLDER if folder is None else folder
        description = _describe(folder)
        names = _names(description)
        known = tuple(description["vendors"])
        chosen = known if vendors is None else tuple(vendors)
        if not chosen:
            raise ValueError(f"no vendor asked for; the atlas in {folder} has {known}")
        for vendor in chosen:
            if vendor not in known:
                raise ValueError(f"vendor {vendor!r} is not in {folder}, which has {known}")
        pictures = {
            (vendor, name): picture
            for vendor in chosen
            for name, picture in _cut(folder / f"{vendor}.png", names, description).items()
        }
        return cls(names, chosen, pictures)

    def picture(self, vendor: str, name: str) -> Image.Image:
        """One RGBA picture, 64 x 64. Raises ValueError for an unknown vendor or name."""
        if vendor not in self.vendors:
            raise ValueError(f"the atlas has no vendor {vendor!r}, only {self.vendors}")
        if (vendor, name) not in self.pictures:
            raise ValueError(f"the atlas has no class {name!r}")
        return self.pictures[vendor, name]


def default_names() -> tuple[str, ...]:
    """Class names of the training atlas, without reading any picture."""
    return _names(_describe(FOLDER))


def _describe(folder: Path) -> dict[str, Any]:
    path = folder / "classes.json"
    if not path.is_file():
        raise FileNotFoundError(f"no atlas in {folder}: {path.name} is missing")
    description: dict[str, Any] = json.loads(path.read_text())
    return description


def _names(description: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(entry["name"] for entry in description["classes"])


def _cut(
    path: Path, names: Sequence[str], description: Mapping[str, Any]
) -> dict[str, Image.Image]:
    if not path.is_file():
        raise FileNotFoundError(f"the atlas lacks the sheet {path}")
    cell, columns = int(description["cell"]), int(description["columns"])
    rows = -(-len(names) // columns)
    with Image.open(path) as file:
        sheet = file.convert("RGBA")
    if sheet.size != (columns * cell, rows * cell):
        raise ValueError(
            f"the sheet {path} is {sheet.size}, {len(names)} classes need "
            f"{(columns * cell, rows * cell)}"
        )
    return {
        name: sheet.crop((x := i % columns * cell, y := i // columns * cell, x + cell, y + cell))
        for i, name in enumerate(names)
    }
