"""CHAIR: objects that captions name and pictures of COCO do not show (Rohrbach et al., EMNLP 2018).

The list of synonyms is theirs, see NOTICE.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from training.evaluation.intervals import intervals
from training.evaluation.json_file import BadJson, read_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from training.evaluation.intervals import Interval

_SYNONYMS: Final = Path(__file__).with_name("chair_synonyms.txt")
_WORD: Final = re.compile(r"[^\W_]+(?:-[^\W_]+)*")
_IRREGULAR: Final = {
    "people": "person", "men": "man", "women": "woman", "children": "child", "mice": "mouse",
    "geese": "goose", "feet": "foot", "teeth": "tooth", "oxen": "ox", "knives": "knife",
    "wolves": "wolf", "calves": "calf", "loaves": "loaf", "scarves": "scarf", "shelves": "shelf",
}  # fmt: skip
_PAIRS: Final = (
    "motor bike", "motor cycle", "air plane", "traffic light", "street light", "traffic signal",
    "stop light", "fire hydrant", "stop sign", "parking meter", "suit case", "sports ball",
    "baseball bat", "baseball glove", "tennis racket", "wine glass", "hot dog", "cell phone",
    "mobile phone", "teddy bear", "hair drier", "potted plant", "laptop computer", "home plate",
    "train track",
)  # fmt: skip
"""Some are no object, such as "train track": their words are not counted alone."""
_ANIMALS: Final = (
    "bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "animal",
    "cub",
)  # fmt: skip


class BadAnnotations(ValueError):
    """A file that is no annotation of COCO; the message names it."""


@dataclass(frozen=True, slots=True)
class Truth:
    """Objects of pictures, by COCO's names."""

    objects: Mapping[str, frozenset[str]]
    """By file name, and by number without leading zeros."""

    def of(self, picture: str) -> frozenset[str] | None:
        """Those of a picture, by its file name or number; None if it is not annotated."""
        name = picture.rsplit("/", 1)[-1]
        number = re.fullmatch(r"(?:.*_)?0*(\d+)(?:\.\w+)?", name)
        found = self.objects.get(name)
        return found if found is not None or number is None else self.objects.get(number[1])


def mentions(caption: str) -> list[str]:
    """COCO's names of the objects that a caption mentions, in order and as often as it does.

    Words are lower-cased and singular; pairs such as "hot dog" are one word, and "toilet seat" is a
    toilet.
    """
    single = [_singular(word) for word in _WORD.findall(caption.lower())]
    words: list[str] = []
    place = 0
    while place < len(single):
        pair = _pairs().get(" ".join(single[place : place + 2]))
        words.append(single[place] if pair is None else pair)
        place += 1 if pair is None else 2
    if {"toilet", "seat"} <= set(words):
        words = [word for word in words if word != "seat"]
    return [_names()[word] for word in words if word in _names()]


def read_truth(files: Sequence[Path]) -> Truth:
    """Objects of pictures, put together from files.

    A file is COCO's instances or captions (`images` with `id` and `file_name`, `annotations` with
    `image_id` and `category_id` or `caption`, `categories`), or an object of picture to a list of
    COCO's names. Objects that a human caption mentions count as shown.

    Raises:
        BadAnnotations: a file is neither, or names an object that COCO does not have.
        OSError: it cannot be read.
    """
    objects: dict[str, set[str]] = defaultdict(set)
    files_of: dict[str, str] = {}
    for file in files:
        try:
            whole = read_json(file)
            if not isinstance(whole, dict):
                raise BadAnnotations(f"{file} holds no object")
            if "annotations" not in whole:
                for picture, names in whole.items():
                    objects[picture] |= {_known(name) for name in names}
                continue
            categories = {one["id"]: one["name"] for one in whole.get("categories", ())}
            for image in whole.get("images", ()):
                files_of[str(image["id"])] = image["file_name"]
                objects[str(image["id"])] |= set()
            for note in whole["annotations"]:
                key = str(note["image_id"])
                if "caption" in note:
                    objects[key] |= set(mentions(note["caption"]))
                else:
                    objects[key].add(_known(categories[note["category_id"]]))
        except BadAnnotations:
            raise
        except BadJson as error:
            raise BadAnnotations(str(error)) from None
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise BadAnnotations(f"{file} is no annotation of COCO: {error!r}") from None
    for number, name in files_of.items():
        objects[name] = objects[number]
    return Truth({picture: frozenset(names) for picture, names in objects.items()})


def chair_figures(captions: Sequence[str], truth: Sequence[frozenset[str]]) -> dict[str, Interval]:
    """CHAIR of captions and the objects that their pictures show.

    `chair_i` is the share of mentions of what is not there, `chair_s` that of captions with one;
    `recall` the share of the objects shown that are mentioned. Where there is no mention at all
    `chair_i` is 0, and where there is no object `recall` is.

    Raises:
        ValueError: there is no caption.
    """
    rows = []
    for caption, shown in zip(captions, truth, strict=True):
        named = mentions(caption)
        wrong = sum(name not in shown for name in named)
        rows.append([wrong, len(named), wrong > 0, len(shown & set(named)), len(shown)])

    def figures(means_K: np.ndarray) -> np.ndarray:
        wrong, named, any_wrong, found, shown = means_K
        return np.array(
            [wrong / named if named else 0.0, any_wrong, found / shown if shown else 0.0]
        )

    each = intervals(np.array(rows, dtype=float), figures)
    return dict(zip(("chair_i", "chair_s", "recall"), each, strict=True))


def _known(name: object) -> str:
    if name not in set(_names().values()):
        raise BadAnnotations(f"{name!r} is no object of COCO")
    return str(name)


@lru_cache(maxsize=1)
def _names() -> dict[str, str]:
    """COCO's name by synonym."""
    lines = _SYNONYMS.read_text(encoding="utf-8").splitlines()
    groups = [line.strip().split(", ") for line in lines if line.strip()]
    return {synonym: group[0] for group in groups for synonym in group}


@lru_cache(maxsize=1)
def _pairs() -> dict[str, str]:
    """What stands for two singular words."""
    pairs = {pair: pair for pair in _PAIRS} | {"bow tie": "tie", "toilet seat": "toilet"}
    pairs |= {f"{age} {animal}": animal for age in ("baby", "adult") for animal in _ANIMALS}
    return pairs | {f"passenger {one}": one for one in ("jet", "train")}


@lru_cache(maxsize=1)
def _plurals() -> dict[str, str]:
    """Singular by regular plural, of the words that matter."""
    singular = {word for term in [*_names(), *_pairs()] for word in term.split()}
    return {_plural(word): word for word in singular if _plural(word) not in singular}


def _plural(word: str) -> str:
    if re.search(r"(?:s|x|z|ch|sh)$", word):
        return f"{word}es"
    return f"{word[:-1]}ies" if re.search(r"[^aeiou]y$", word) else f"{word}s"


def _singular(word: str) -> str:
    return _IRREGULAR.get(word) or _plurals().get(word, word)
