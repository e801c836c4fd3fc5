"""Write scenes as a folder of pictures with annotations, and read annotations back as scenes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, get_args

import numpy as np

from rediff_model.files.atomic import replacing_folder
from training.stickers.graph import RelationKind, Scene, Sticker
from training.stickers.render import render
from training.stickers.sample import sample_scene

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from training.stickers.atlas import Atlas

ANNOTATIONS = "annotations.jsonl"
SEED_STRIDE = 1_000_003
"""Scene i of an export with seed S is the split's scene S * SEED_STRIDE + i."""


class Caption(Protocol):
    """What composing a caption gives."""

    @property
    def text(self) -> str:
        """The caption's words."""


def write_split(
    split: str,
    count: int,
    seed: int,
    out: Path,
    atlas: Atlas,
    compose: Callable[[Scene, np.random.Generator], Caption],
    *,
    overwrite: bool = False,
) -> Path:
    """Write `count` scenes as PNG files and `annotations.jsonl`, one line each; returns the latter.

    The folder appears whole or not at all. Raises FileExistsError if `out` is a file, the current
    folder, or holds something and `overwrite` is false; ValueError for a count below 1 or an
    unknown split.
    """
    if count < 1:
        raise ValueError(f"count is {count}, expected 1 or more")
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file")
    if out.resolve() == Path.cwd():
        # It would be replaced under the feet of whoever stands in it.
        raise FileExistsError(f"{out} is the current folder; name one in it")
    if not overwrite and out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty; give overwrite=True to replace it")
    with replacing_folder(out) as folder:
        _write_pictures(folder, split, count, seed, atlas, compose)
    return out / ANNOTATIONS


def _write_pictures(
    folder: Path,
    split: str,
    count: int,
    seed: int,
    atlas: Atlas,
    compose: Callable[[Scene, np.random.Generator], Caption],
) -> None:
    with (folder / ANNOTATIONS).open("w", encoding="utf-8") as lines:
        for index in range(count):
            scene = sample_scene(seed * SEED_STRIDE + index, atlas, split=split)
            caption = compose(scene, np.random.default_rng(scene.seed))
            file = f"{index:06d}.png"
            render(scene, atlas).save(folder / file)
            lines.write(json.dumps(annotation(scene, file, caption.text, split)) + "\n")


def annotation(scene: Scene, file: str, caption: str, split: str) -> dict[str, Any]:
    """The record of one picture. Boxes are the plates', in pixels, end exclusive."""
    return {
        "file": file,
        "caption": caption,
        "objects": [
            {
                "name": sticker.name,
                "colour": sticker.colour,
                "shape": sticker.shape,
                "size": sticker.size,
                "box": list(sticker.box),
            }
            for sticker in scene.stickers
        ],
        "relations": true_relations(scene),
        "seed": scene.seed,
        "split": split,
        "backdrop": scene.backdrop,
        "pattern": scene.pattern,
        "vendors": [sticker.vendor for sticker in scene.stickers],
    }


def true_relations(scene: Scene) -> list[list[int | str]]:
    """Every [subject, kind, object] that holds, stickers counted from 0."""
    indices = range(len(scene.stickers))
    kinds: tuple[RelationKind, ...] = get_args(RelationKind)
    return [
        [subject, kind, other]
        for subject in indices
        for other in indices
        for kind in kinds
        if subject != other and scene.holds(subject, kind, other)
    ]


def scene_from_annotation(record: Mapping[str, Any]) -> Scene:
    """The scene of one line of `annotations.jsonl`. Raises KeyError for a field it lacks."""
    return Scene(
        seed=record["seed"],
        backdrop=record["backdrop"],
        pattern=record["pattern"],
        stickers=tuple(
            Sticker(
                name=entry["name"],
                vendor=vendor,
                colour=entry["colour"],
                shape=entry["shape"],
                size=entry["size"],
                box=tuple(entry["box"]),
            )
            for entry, vendor in zip(record["objects"], record["vendors"], strict=True)
        ),
    )
