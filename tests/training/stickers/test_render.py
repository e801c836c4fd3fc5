"""The atlas, sampled scenes, their pictures and their annotations."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from training.stickers.atlas import FOLDER, Atlas, default_names
from training.stickers.export import ANNOTATIONS, scene_from_annotation, write_split
from training.stickers.grammar import compose
from training.stickers.graph import (
    BACKDROPS,
    COLOURS,
    PATTERNS,
    PICTURE_SIZE,
    SHAPES,
    SIZES,
    Scene,
    Sticker,
)
from training.stickers.render import (
    BACKDROP_COLOURS,
    BACKDROP_JITTER,
    PLATE_COLOURS,
    PLATE_JITTER,
    plate_masks,
    render,
)
from training.stickers.sample import PLATE_SIDES, default_held_out_pairs, sample_scene

if TYPE_CHECKING:
    from collections.abc import Sequence

HELD_OUT_FOLDER = Path(__file__).parents[2] / "data" / "held_out_atlas"
SCENES = 400


@pytest.fixture(scope="module")
def atlas() -> Atlas:
    return Atlas.load()


@pytest.fixture(scope="module")
def scenes(atlas: Atlas) -> list[Scene]:
    return [sample_scene(seed, atlas) for seed in range(SCENES)]


def pairs_of(scenes: Sequence[Scene]) -> set[tuple[str, str]]:
    return {(sticker.colour, sticker.name) for scene in scenes for sticker in scene.stickers}


def test_names_are_short_singular_words_and_none_contains_another() -> None:
    names = default_names()
    assert len(names) == len(set(names)) >= 100
    for name in names:
        assert re.fullmatch(r"[a-z]+( [a-z]+){0,2}", name)
    words = [set(name.split()) for name in names]
    assert not any(a < b for a in words for b in words)
    reserved = {*COLOURS, *SHAPES, *SIZES, *BACKDROPS, *PATTERNS}
    assert not reserved & set(names)
    assert sum(name[0] in "aeiou" for name in names) >= 20


@pytest.mark.parametrize("folder", [FOLDER, HELD_OUT_FOLDER], ids=["training", "held out"])
def test_every_picture_fills_its_cell_and_no_two_are_alike(folder: Path) -> None:
    atlas = Atlas.load(folder)
    for vendor in atlas.vendors:
        pixels = {name: np.asarray(atlas.picture(vendor, name)) for name in atlas.names}
        for name, picture in pixels.items():
            rows, columns = np.nonzero(picture[..., 3])
            assert picture.shape == (64, 64, 4)
            assert max(np.ptp(rows), np.ptp(columns)) >= 60, (vendor, name)
        assert all(not np.array_equal(pixels[a], pixels[b]) for a, b in combinations(pixels, 2))


def test_the_held_out_atlas_has_the_training_classes_by_another_vendor(atlas: Atlas) -> None:
    held_out = Atlas.load(HELD_OUT_FOLDER)
    assert held_out.names == atlas.names == default_names()
    assert not set(held_out.vendors) & set(atlas.vendors)


def test_atlas_errors_name_what_is_missing(atlas: Atlas, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="vendor 'apple'"):
        Atlas.load(vendors=["apple"])
    with pytest.raises(ValueError, match="no vendor asked for"):
        Atlas.load(vendors=[])
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path))):
        Atlas.load(tmp_path)
    with pytest.raises(ValueError, match="vendor 'fluent-3d'"):
        atlas.picture("fluent-3d", "fox")
    with pytest.raises(ValueError, match="class 'griffin'"):
        atlas.picture("google", "griffin")
    (tmp_path / "classes.json").write_text((FOLDER / "classes.json").read_text())
    with pytest.raises(FileNotFoundError, match=r"google\.png"):
        Atlas.load(tmp_path)
    Image.new("RGBA", (64, 64)).save(tmp_path / "google.png")
    with pytest.raises(ValueError, match=r"\(64, 64\)"):
        Atlas.load(tmp_path, vendors=["google"])


def test_a_seed_gives_one_scene_and_one_picture(atlas: Atlas) -> None:
    first, again, other = (sample_scene(seed, atlas) for seed in (7, 7, 8))
    assert first == again != other
    assert render(first, atlas).tobytes() == render(again, atlas).tobytes()
    varied = render(replace(first, seed=9), atlas)
    assert varied.tobytes() != render(first, atlas).tobytes()
    assert (varied.mode, varied.size) == ("RGB", (PICTURE_SIZE, PICTURE_SIZE))


def test_splits_share_no_scene(atlas: Atlas) -> None:
    streams = [
        {
            (s.backdrop, s.pattern, s.stickers)
            for s in (sample_scene(i, atlas, split=split) for i in range(100))
        }
        for split in ("train", "validation", "test", "held_out_pairs")
    ]
    assert all(not a & b for a, b in combinations(streams, 2))


def test_held_out_pairs_are_about_two_percent() -> None:
    names = default_names()
    pairs = default_held_out_pairs(names)
    assert 0.01 < len(pairs) / (len(names) * len(COLOURS)) < 0.03
    assert default_held_out_pairs(names[:50]) == {pair for pair in pairs if pair[1] in names[:50]}


def test_held_out_pairs_stay_out_of_training_and_are_in_their_own_split(atlas: Atlas) -> None:
    pairs = frozenset((colour, name) for name in atlas.names for colour in COLOURS[:4])
    for split in ("train", "validation"):
        drawn = [
            sample_scene(seed, atlas, split=split, held_out_pairs=pairs) for seed in range(200)
        ]
        assert not pairs & pairs_of(drawn)
    free = [sample_scene(seed, atlas, split="test", held_out_pairs=pairs) for seed in range(50)]
    assert pairs & pairs_of(free)
    default = default_held_out_pairs(atlas.names)
    for seed in range(200):
        scene = sample_scene(seed, atlas, split="held_out_pairs")
        assert default & pairs_of([scene])
        names = [sticker.name for sticker in scene.stickers]
        assert len(set(names)) == len(names)


def test_default_held_out_pairs_never_occur_in_training(atlas: Atlas, scenes: list[Scene]) -> None:
    free = [sample_scene(seed, atlas, split="test") for seed in range(SCENES)]
    assert default_held_out_pairs(atlas.names) & pairs_of(free)
    assert not default_held_out_pairs(atlas.names) & pairs_of(scenes)


def test_every_value_and_number_of_stickers_occurs(atlas: Atlas, scenes: list[Scene]) -> None:
    stickers = [sticker for scene in scenes for sticker in scene.stickers]
    assert {len(scene.stickers) for scene in scenes} == {2, 3, 4, 5}
    assert {scene.backdrop for scene in scenes} == set(BACKDROPS)
    assert {scene.pattern for scene in scenes} == set(PATTERNS)
    assert {sticker.colour for sticker in stickers} == set(COLOURS)
    assert {sticker.shape for sticker in stickers} == set(SHAPES)
    assert {sticker.size for sticker in stickers} == set(SIZES)
    assert {sticker.name for sticker in stickers} == set(atlas.names)
    assert {sticker.vendor for sticker in stickers} == set(atlas.vendors)


def test_stickers_are_distinct_in_reading_order_and_inside_their_cells(
    scenes: list[Scene],
) -> None:
    for scene in scenes:
        cells = [sticker.cell for sticker in scene.stickers]
        assert cells == sorted(set(cells))
        assert len({sticker.name for sticker in scene.stickers}) == len(scene.stickers)
        for sticker in scene.stickers:
            x0, y0, x1, y1 = sticker.box
            row, column = sticker.cell
            for start, end, index in ((x0, x1, column), (y0, y1, row)):
                assert 3 * start >= index * PICTURE_SIZE
                assert 3 * end <= (index + 1) * PICTURE_SIZE
            least, greatest = PLATE_SIDES[sticker.size]
            assert least <= max(x1 - x0, y1 - y0) <= greatest
            wanted = 1.4 if sticker.shape == "oval" else 1.0
            assert (x1 - x0) / (y1 - y0) == pytest.approx(wanted, abs=0.03)


def test_relations_follow_from_cells(scenes: list[Scene]) -> None:
    for scene in scenes:
        for i, j in combinations(range(len(scene.stickers)), 2):
            (row_i, column_i), (row_j, column_j) = (scene.stickers[k].cell for k in (i, j))
            assert scene.holds(i, "above", j) == (row_i < row_j)
            assert scene.holds(i, "left of", j) == (column_i < column_j)
            assert scene.holds(i, "right of", j) == (column_i > column_j)


def test_sampling_errors_name_the_value(atlas: Atlas) -> None:
    with pytest.raises(ValueError, match="'training'"):
        sample_scene(1, atlas, split="training")
    with pytest.raises(ValueError, match="seed is -1"):
        sample_scene(-1, atlas)
    with pytest.raises(ValueError, match="stickers is 6"):
        sample_scene(1, atlas, stickers=6)
    with pytest.raises(ValueError, match="no held-out pair"):
        sample_scene(1, atlas, split="held_out_pairs", held_out_pairs=frozenset())
    every = frozenset((colour, name) for colour in COLOURS for name in atlas.names)
    with pytest.raises(ValueError, match="every colour"):
        sample_scene(1, atlas, held_out_pairs=every)


def test_the_number_of_stickers_can_be_fixed(atlas: Atlas) -> None:
    assert [len(sample_scene(3, atlas, stickers=n).stickers) for n in range(1, 6)] == [
        1,
        2,
        3,
        4,
        5,
    ]


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_plate_shows_its_colour(atlas: Atlas, colour: str, shape: str) -> None:
    """On the plate and off the picture, the named colour is the commonest by far."""
    height = 43 if shape == "oval" else 60
    box = (80, 80, 140, 80 + height)
    sticker = Sticker("fox", "google", colour, shape, "large", box)
    pixels = np.asarray(render(Scene(4, "white", "plain", (sticker,)), atlas)).astype(int)
    inside = np.asarray(plate_masks(shape, 60, height)[1]) == 255
    plate = pixels[80 : 80 + height, 80:140][inside]
    near = np.abs(plate - PLATE_COLOURS[colour]).max(1) <= PLATE_JITTER
    assert near.mean() > 0.15
    for other in set(COLOURS) - {colour}:
        assert near.sum() > 2 * (np.abs(plate - PLATE_COLOURS[other]).max(1) <= PLATE_JITTER).sum()


def test_colours_are_far_apart() -> None:
    for palette, jitter in ((PLATE_COLOURS, PLATE_JITTER), (BACKDROP_COLOURS, BACKDROP_JITTER)):
        for a, b in combinations(palette.values(), 2):
            assert np.abs(np.subtract(a, b)).max() > 4 * jitter
    assert set(PLATE_COLOURS) == set(COLOURS)
    assert set(BACKDROP_COLOURS) == set(BACKDROPS)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_shows_on_the_backdrop(atlas: Atlas, pattern: str) -> None:
    pixels = np.asarray(render(Scene(1, "mint", pattern, ()), atlas))
    shades, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
    darker = counts[shades.sum(1) < shades.sum(1).max() - 30].sum() / counts.sum()
    assert darker == 0 if pattern == "plain" else 0.2 < darker < 0.6


def test_shapes_without_a_plate_are_refused() -> None:
    with pytest.raises(ValueError, match="'hexagon'"):
        plate_masks("hexagon", 40, 40)


def test_annotations_give_back_the_scenes(atlas: Atlas, tmp_path: Path) -> None:
    file = write_split("test", 4, 2, tmp_path / "new" / "test", atlas, compose)
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert file == tmp_path / "new" / "test" / ANNOTATIONS
    for index, record in enumerate(records):
        scene = sample_scene(2 * 1_000_003 + index, atlas, split="test")
        assert scene_from_annotation(record) == scene
        assert record["caption"] == compose(scene, np.random.default_rng(scene.seed)).text
        with Image.open(file.parent / record["file"]) as picture:
            assert picture.tobytes() == render(scene, atlas).tobytes()
        for subject, kind, other in record["relations"]:
            assert scene.holds(subject, kind, other)
        mirrored = {
            "left of": "right of",
            "right of": "left of",
            "above": "below",
            "below": "above",
        }
        for subject, kind, other in record["relations"]:
            assert [other, mirrored[kind], subject] in record["relations"]
    assert len(list(file.parent.iterdir())) == len(records) + 1 == 5
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["test"]


def test_an_export_replaces_a_folder_only_when_told(atlas: Atlas, tmp_path: Path) -> None:
    out = tmp_path / "train"
    write_split("train", 3, 0, out, atlas, compose)
    with pytest.raises(FileExistsError, match="not empty"):
        write_split("train", 1, 0, out, atlas, compose)
    assert len(list(out.iterdir())) == 4
    write_split("train", 1, 0, out, atlas, compose, overwrite=True)
    assert len(list(out.iterdir())) == 2
    with pytest.raises(FileExistsError, match="is a file"):
        write_split("train", 1, 0, out / ANNOTATIONS, atlas, compose, overwrite=True)


def test_an_export_does_not_replace_the_folder_one_stands_in(
    atlas: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for out in (Path(), Path("."), tmp_path):
        with pytest.raises(FileExistsError, match="is the current folder"):
            write_split("train", 1, 0, out, atlas, compose)
    assert write_split("train", 1, 0, Path("here"), atlas, compose).is_file()


def test_a_failed_export_leaves_what_was_there(atlas: Atlas, tmp_path: Path) -> None:
    out = tmp_path / "train"
    write_split("train", 2, 0, out, atlas, compose)
    before = sorted(path.name for path in out.iterdir())
    with pytest.raises(ValueError, match="'nowhere'"):
        write_split("nowhere", 2, 0, out, atlas, compose, overwrite=True)
    with pytest.raises(ValueError, match="count is 0"):
        write_split("train", 0, 0, out, atlas, compose, overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == before
    assert [path.name for path in tmp_path.iterdir()] == ["train"]
