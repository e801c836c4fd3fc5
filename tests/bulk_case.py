"""Data sets of a few small pictures, and a captioner that knows every caption beforehand."""

from __future__ import annotations

import resource
import tarfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING

from PIL import Image

from rediff_model.files.image_formats.names import FORMATS
from server.bulk.item import BulkError, Captioned, Item, PictureError, Unreadable
from server.bulk.outputs import Doubt
from server.bulk.run import Run
from server.bulk.wording import Wording
from server.engine.request import Job
from server.images.decode import ImageError, decode_image, image_limits

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from server.bulk.order import Order
    from server.bulk.outputs import Output
    from server.bulk.run import Captioner, Tally
    from server.settings import Settings


def png(shade: int) -> bytes:
    """A picture that is told from others by its grey."""
    buffer = BytesIO()
    Image.new("RGB", (6, 4), (shade, shade, shade)).save(buffer, "PNG")
    return buffer.getvalue()


NOT_READ = f"the image must be one of {', '.join(FORMATS)}"
"""Why a file of some text has no caption."""


def write_pictures(folder: Path, names: Iterable[str]) -> list[Path]:
    """A picture of its own for each name."""
    paths = [folder / name for name in names]
    for shade, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(shade))
    return paths


def write_tar(path: Path, members: Mapping[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, BytesIO(content))


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file of this process gets longer than so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def item(path: Path) -> Item:
    return Item(str(path), path.name, path.stem, path.suffix)


def captioned(name: str) -> Captioned:
    """What `KnownCaptioner` says of a picture; names with "dim" are doubtful."""
    confidence = 0.25 if "dim" in name else 0.75
    return Captioned(f"caption of {name}", confidence, 1, 2, "stop")


@dataclass
class KnownCaptioner:
    """Gives results in the reverse order of each window; names with "bad" fail."""

    window: int = 3
    stops_after: int | None = None
    """Results until there are no more."""
    waiting: list[tuple[int, Item]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def submit(self, number: int, item: Item) -> None:
        self.waiting.append((number, item))
        self.asked.append(item.name)

    def take(self) -> tuple[int, Captioned | PictureError]:
        if self.stops_after is not None:
            if self.stops_after == 0:
                raise BulkError("the engine ended")
            self.stops_after -= 1
        number, asked = self.waiting.pop()
        if "bad" in asked.name:
            return number, PictureError("it is bad")
        return number, captioned(asked.name)

    def close(self) -> None:
        self.waiting.clear()


@dataclass
class Failures:
    """Keeps name, source and reason of what has no caption."""

    found: list[tuple[str, str, str]]

    def failed(self, name: str, source: str, reason: str) -> None:
        self.found.append((name, source, reason))

    def warned(self, warning: str) -> None:
        """Warnings have tests of the command."""

    def advanced(self, tally: Tally, worked: bool) -> None:
        """The bar has a test of its own."""


def captions_one_by_one(settings: Settings, order: Order, paths: Iterable[Path]) -> dict[Path, str]:
    """What the model says of each picture alone, without an engine; broken ones are left out."""
    # Imports torch.
    from server.engine.model_runner import SamplerRunner

    runner = SamplerRunner.load(settings.engine())
    fitted = order.fit(runner)
    texts = {}
    for path in paths:
        try:
            picture = decode_image(path.read_bytes(), image_limits(settings))
        except ImageError:
            continue
        batch = runner.open()
        job = Job(runner.prepare(picture, fitted.question), fitted.settings, lambda _: None)
        batch.join({0: job})
        while not (captions := batch.step().captions):
            pass
        texts[path] = runner.decode(captions[0].ids).strip()
    return texts


def run_over(
    inputs: Iterable[Item | Unreadable],
    output: Output,
    captioner: Captioner | None = None,
    min_confidence: float | None = None,
) -> tuple[Tally, list[tuple[str, str, str]]]:
    """A whole run; what became of the pictures, and the failures."""
    failures: list[tuple[str, str, str]] = []
    run = Run(
        captioner or KnownCaptioner(),
        output,
        Wording(),
        Doubt(min_confidence),
        Failures(failures),
    )
    run.over(inputs)
    output.close()
    return run.tally, failures
