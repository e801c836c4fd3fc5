"""Conversations as batches for the model: sources opened, rows rendered, pictures cut in tiles.

Shape suffixes: B samples, L rows of the longest sample, N tiles of a picture, T side of a tile.
"""

from __future__ import annotations

import glob
import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rediff_model.files.atomic import write_json
from rediff_model.vision.tiling import cut_tiles, layout
from training.config import TrainConfigError
from training.data.archive import by_name, members
from training.data.collate import Batch, collate, require_trained
from training.data.images import ImageFolder, ImageShards
from training.data.mixture import Mixture, Source
from training.data.problems import Report
from training.data.row_files import RowFile, RowShards

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Self

    from PIL import Image
    from torch import Tensor

    from rediff_model.config import ModelConfig
    from rediff_model.sampling.params import Compat
    from rediff_model.vision.tiling import Layout
    from training.conversations.config import DialogueData, SourceShape
    from training.data.images import ImageStore
    from training.data.sample import Sample

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DialogueBatch:
    """Collated samples with their pictures."""

    rows: Batch
    keys_B: Tensor
    """The samples' numbers in the run, from which chance is drawn."""
    tiles: tuple[Tensor | None, ...]
    """Of each sample's picture, uint8 [N, 3, T, T]."""
    plans: tuple[Layout | None, ...]

    def weight(self) -> float:
        return float(len(self.keys_B))

    def to(self, device: torch.device) -> Self:
        rows = self.rows
        return replace(
            self,
            rows=replace(
                rows,
                ids_BL=rows.ids_BL.to(device),
                labels_BL=rows.labels_BL.to(device),
                revise_BL=rows.revise_BL.to(device),
                allowed_BL=None if rows.allowed_BL is None else rows.allowed_BL.to(device),
                others_BL=None if rows.others_BL is None else rows.others_BL.to(device),
            ),
            keys_B=self.keys_B.to(device),
            tiles=tuple(None if tiles is None else tiles.to(device) for tiles in self.tiles),
        )


class DialogueBatches:
    """Deals the micro-batches of a step by its number; what is wrong with the data is reported."""

    def __init__(
        self,
        sources: Sequence[Source],
        render: Callable[..., Sample],
        config: ModelConfig,
        report: Report,
        *,
        batch_size: int,
        parts: int,
        seed: int,
        pad_id: int,
        max_length: int,
        group_lengths: bool = True,
        compat: Compat = "default",
    ) -> None:
        """A step has `batch_size` samples in `parts` micro-batches.

        Raises:
            MixtureError: the sources cannot be mixed.
        """
        self.report = report
        self._config = config
        self._parts = parts
        self._pad_id = pad_id
        self._max_length = max_length
        self._compat = compat

        def check(sample: Sample, image: Image.Image | None) -> None:
            rows = 0 if image is None else layout(image.size, config).tokens
            if compat == "default":
                require_trained(sample, rows, max_length)

        self.mixture = Mixture(
            sources,
            render,
            batch_size=batch_size,
            seed=seed,
            group_lengths=group_lengths,
            check=check,
        )

    def __call__(self, step: int, part: int) -> DialogueBatch:
        """Micro-batch `part` of a step."""
        examples = self.mixture.batch(step, self.report, part, self._parts)
        self.tell()
        plans = [
            None if example.image is None else layout(example.image.size, self._config)
            for example in examples
        ]
        return DialogueBatch(
            rows=collate(
                [example.sample for example in examples],
                [0 if plan is None else plan.tokens for plan in plans],
                pad_id=self._pad_id,
                max_length=self._max_length,
                compat=self._compat,
            ),
            keys_B=torch.tensor([example.key for example in examples]),
            tiles=tuple(
                None if example.image is None else cut_tiles(example.image, self._config)
                for example in examples
            ),
            plans=tuple(plans),
        )

    def tell(self) -> None:
        """Log the findings that are new."""
        for problem in self.report.news():
            logger.warning("%s", problem)

    def recall(self, path: Path) -> None:
        """Go on with the report that an interrupted run has left at `path`, if it can be read."""
        if not path.exists():
            return
        try:
            self.report.recall(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError, AttributeError):
            logger.warning("%s is no report of findings: it is written anew", path)
        self.report.news()

    def write_report(self, path: Path) -> None:
        """Write counts and findings as JSON, whole."""
        write_json(path, self.report.to_json())


def open_source(shape: SourceShape, report: Report) -> Source:
    """The rows and pictures of a source; malformed rows go to `report`.

    Raises:
        TrainConfigError: a file or folder is missing, or has no usable row.
    """
    rows = _rows(shape, report)
    if not len(rows):
        raise TrainConfigError(f"{shape.name}: {shape.rows} has no usable row: {report.summary()}")
    return Source(shape.name, rows, open_images(shape, report), shape.weight, rows.drafted)


def open_images(shape: SourceShape, report: Report) -> ImageStore:
    """Where the pictures of a source are.

    Raises:
        TrainConfigError: there is no such folder and no such shard.
    """
    where = shape.images or (
        shape.rows if shape.rows.endswith(".tar") else str(Path(shape.rows).parent)
    )
    if Path(where).is_dir():
        return ImageFolder(Path(where))
    return ImageShards(by_name(members(_shards(where, shape.name), report)))


def open_all(data: DialogueData, report: Report, confusion: float = 0.0) -> list[Source]:
    """Every source of the mixture, once it is known that held-out rows can be read as well.

    Raises:
        TrainConfigError: see `open_source`; or `loss.confusion` is given, and no row has a draft.
    """
    if data.validation is not None:
        open_source(data.validation, Report())
    sources = [open_source(shape, report) for shape in data.sources]
    if confusion and not any(source.drafted for source in sources):
        raise TrainConfigError(f"loss.confusion {confusion}: no row of data.sources has a draft")
    return sources


def _rows(shape: SourceShape, report: Report) -> RowFile | RowShards:
    if shape.rows.endswith(".tar"):
        return RowShards(_shards(shape.rows, shape.name), report)
    try:
        return RowFile(Path(shape.rows), report)
    except OSError as error:
        raise TrainConfigError(f"{shape.name}: {shape.rows} cannot be read: {error}") from None


def _shards(pattern: str, name: str) -> list[Path]:
    found = [Path(path) for path in sorted(glob.glob(pattern))]
    if not found or any(path.is_dir() for path in found):
        raise TrainConfigError(f"{name}: {pattern} is neither a folder nor tar shards")
    return found
