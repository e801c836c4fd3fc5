"""Several sources mixed by weight, in an order that depends on the seed and the step alone.

Samples are dealt in blocks of whole batches. In a block every source has the same number of places,
which stand for its weight; within it rows of like length are put together. So step n can be
dealt without those before it, and by any number of processes.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from training.data.images import ImageError
from training.data.problems import BadRow, Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from PIL import Image

    from training.data.conversation import Row
    from training.data.images import ImageStore
    from training.data.problems import Report
    from training.data.row_files import RowSource
    from training.data.sample import Sample


class MixtureError(ValueError):
    """A mixture that cannot be dealt."""


@dataclass(frozen=True, slots=True)
class Source:
    """A data set, where its pictures are, and its share of the mixture."""

    name: str
    rows: RowSource
    images: ImageStore
    weight: float = 1.0
    drafted: bool = False
    """Whether any row has a weaker model's draft."""


@dataclass(frozen=True, slots=True)
class Example:
    """A sample with its picture. `key` is its number in the run, which `draws.draw` takes."""

    key: int
    source: str
    sample: Sample
    image: Image.Image | None


class Mixture:
    """Deals batches of examples; holds no state but caches."""

    def __init__(
        self,
        sources: Sequence[Source],
        render: Callable[[Row], Sample],
        *,
        batch_size: int,
        seed: int,
        block_batches: int = 64,
        group_lengths: bool = True,
        check: Callable[[Sample, Image.Image | None], None] | None = None,
    ) -> None:
        """`batch_size` is that of a step over all processes. `check` may refuse a sample with its
        picture by raising `BadRow`, for instance because together they are too long.

        Raises:
            MixtureError: no sources, an empty one, a weight that is not positive, or one too small
                to get a place in a block of `block_batches` batches.
        """
        if batch_size < 1 or block_batches < 1:
            raise MixtureError(
                f"batch_size and block_batches must be positive, got {batch_size}, {block_batches}"
            )
        self._sources = tuple(sources)
        self._render = render
        self._batch_size = batch_size
        self._seed = seed
        self._group_lengths = group_lengths
        self._check = check
        self._places = _places(self._sources, batch_size * block_batches)
        self._last_block: tuple[int, list[tuple[int, int]]] = (-1, [])
        self._orders: dict[tuple[int, int], list[int]] = {}

    def steps(self, epochs: float = 1.0) -> int:
        """Steps until the source that is used up last, relative to its weight, was seen `epochs`
        times; the others are repeated."""
        block = sum(self._places)
        samples = max(
            len(source.rows) * block / places
            for source, places in zip(self._sources, self._places, strict=True)
        )
        return max(1, round(epochs * samples / self._batch_size))

    def batch(self, step: int, report: Report, rank: int = 0, world: int = 1) -> list[Example]:
        """The examples of step `step`, from 0, that fall to process `rank` of `world`.

        A row or picture that cannot be used goes to `report`, and the next usable one of its source
        takes the place, as often as it must.

        Raises:
            MixtureError: the batch does not divide by `world`, or a source has no usable row.
        """
        if self._batch_size % world or not 0 <= rank < world:
            raise MixtureError(
                f"process {rank} of {world} cannot share a batch of {self._batch_size}"
            )
        batches = sum(self._places) // self._batch_size
        if self._last_block[0] != step // batches:
            self._orders.clear()
            self._last_block = (step // batches, self._deal_block(step // batches))
        block = self._last_block[1]
        start = step % batches * self._batch_size
        return [
            self._example(step * self._batch_size + place, *block[start + place], report)
            for place in range(rank, self._batch_size, world)
        ]

    def _example(self, key: int, number: int, position: int, report: Report) -> Example:
        source = self._sources[number]
        count = len(source.rows)
        # Around within one epoch: the next one may begin with the same bad rows.
        epoch = position - position % count
        for attempt in range(count):
            row = source.rows.row(self._row_index(number, epoch + (position + attempt) % count))
            try:
                sample = self._render(row)
                image = source.images.open(row.image) if row.image else None
                if self._check is not None:
                    self._check(sample, image)
            except BadRow as error:
                report.add(error.problem)
            except ImageError as error:
                report.add(Problem("image", row.where, str(error)))
            else:
                report.extend(sample.problems)
                return Example(key, source.name, sample, image)
        raise MixtureError(f"none of the {count} rows of {source.name} can be used")

    def _deal_block(self, block: int) -> list[tuple[int, int]]:
        """Source and position in that source's endless order, for every place of a block."""
        places = [
            (number, block * share + i)
            for number, share in enumerate(self._places)
            for i in range(share)
        ]
        chance = random.Random(f"{self._seed}:block:{block}")
        chance.shuffle(places)
        if not self._group_lengths:
            return places
        places.sort(key=lambda place: self._sources[place[0]].rows.size(self._row_index(*place)))
        size = self._batch_size
        batches = [places[at : at + size] for at in range(0, len(places), size)]
        chance.shuffle(batches)
        return [place for batch in batches for place in batch]

    def _row_index(self, number: int, position: int) -> int:
        source = self._sources[number]
        epoch, at = divmod(position, len(source.rows))
        if (number, epoch) not in self._orders:
            order = list(range(len(source.rows)))
            random.Random(f"{self._seed}:{source.name}:{epoch}").shuffle(order)
            self._orders[number, epoch] = order
        return self._orders[number, epoch][at]


def _places(sources: Sequence[Source], total: int) -> list[int]:
    """Places of each source in a block, by largest remainder."""
    if not sources:
        raise MixtureError("a mixture needs a source")
    for source in sources:
        if not source.weight > 0:
            raise MixtureError(f"the weight of {source.name} must be positive: {source.weight}")
        if not len(source.rows):
            raise MixtureError(f"{source.name} has no rows")
    whole = sum(source.weight for source in sources)
    exact = [source.weight * total / whole for source in sources]
    places = [int(share) for share in exact]
    by_remainder = sorted(range(len(sources)), key=lambda i: places[i] - exact[i])
    for i in by_remainder[: total - sum(places)]:
        places[i] += 1
    for source, share in zip(sources, places, strict=True):
        if not share:
            raise MixtureError(
                f"the weight {source.weight} of {source.name} is too small for blocks of {total}"
            )
    return places
