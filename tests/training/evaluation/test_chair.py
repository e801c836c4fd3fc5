"""CHAIR on captions and annotations that were counted by hand."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from training.evaluation.chair import BadAnnotations, chair_figures, mentions, read_truth

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("Two men eat hot dogs with KNIVES.", ["person", "hot dog", "knife"]),
        ("A dog near a hot-dog stand", ["dog"]),
        ("The toilet seat is up.", ["toilet"]),
        ("A toilet, and a seat.", ["toilet"]),
        ("A seat", ["chair"]),
        ("A bow tie and a tie", ["tie", "tie"]),
        ("A baby elephant by a train track", ["elephant"]),
        ("Passenger trains, buses and a passenger jet", ["train", "bus", "airplane"]),
        ("Children on benches, three TVs, puppies", ["person", "bench", "tv", "dog"]),
        ("A cityscape of light", []),
    ],
)
def test_mentions(caption: str, expected: list[str]) -> None:
    assert mentions(caption) == expected


def test_figures_by_hand() -> None:
    figures = chair_figures(
        ["A dog and a cat chase a dog.", "A man.", "Nothing."],
        [frozenset({"dog", "bench"}), frozenset({"person"}), frozenset({"car"})],
    )
    assert figures["chair_i"].mean == pytest.approx(1 / 4)
    assert figures["chair_s"].mean == pytest.approx(1 / 3)
    assert figures["recall"].mean == pytest.approx(2 / 4)


def test_captions_without_a_mention() -> None:
    figures = chair_figures(["Nothing."], [frozenset()])
    assert [one.mean for one in figures.values()] == [0, 0, 0]


def write(tmp_path: Path, name: str, value: Any) -> Path:
    file = tmp_path / name
    file.write_text(json.dumps(value))
    return file


IMAGES = [
    {"id": 42, "file_name": "COCO_val2014_000000000042.jpg"},
    {"id": 7, "file_name": "COCO_val2014_000000000007.jpg"},
]


def test_instances_and_captions_are_put_together(tmp_path: Path) -> None:
    instances = {
        "images": IMAGES,
        "annotations": [{"image_id": 42, "category_id": 18}],
        "categories": [{"id": 18, "name": "dog"}],
    }
    captions = {
        "images": IMAGES,
        "annotations": [{"image_id": 42, "caption": "A puppy on a bench."}],
    }
    other = {"x.png": ["cat"]}
    files = [
        write(tmp_path, name, value)
        for name, value in (("i.json", instances), ("c.json", captions), ("o.json", other))
    ]
    truth = read_truth(files)
    for key in ("COCO_val2014_000000000042.jpg", "some/COCO_val2014_000000000042.jpg", "42",
                "000000000042", "000000000042.jpg"):  # fmt: skip
        assert truth.of(key) == frozenset({"dog", "bench"}), key
    assert truth.of("7") == frozenset()
    assert truth.of("x.png") == frozenset({"cat"})
    assert truth.of("43") is None
    assert truth.of("y.png") is None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "holds no object"),
        ({"x.png": ["unicorn"]}, "'unicorn' is no object of COCO"),
        ({"annotations": [{"image_id": 1}]}, "is no annotation of COCO"),
        ({"annotations": 3}, "is no annotation of COCO"),
        ({"x.png": 5}, "is no annotation of COCO"),
    ],
)
def test_other_files(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(BadAnnotations, match=message):
        read_truth([write(tmp_path, "x.json", value)])
