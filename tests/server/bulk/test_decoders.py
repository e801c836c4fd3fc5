"""Worker processes: pictures through the door, deaths that cost one picture, no orphans."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from bulk_case import item, png, write_pictures
from PIL import Image

from server.bulk.decoders import Decoders, Worker, WorkerDied
from server.bulk.item import PictureError
from server.images.decode import ImageLimits, decode_image

if TYPE_CHECKING:
    from collections.abc import Iterator

LIMITS = ImageLimits(max_bytes=10_000)
ROOT = Path(__file__).parents[3]

PARENT = """
import sys
from pathlib import Path
from server.images.decode import ImageLimits
from server.bulk.item import Item
from server.bulk.decoders import Decoders

if __name__ == "__main__":
    decoders = Decoders(2, ImageLimits())
    for number in range(2):
        decoders.submit(number, Item(sys.argv[1], "x", "x"))
    for _ in range(2):
        decoders.take()
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    one = Worker(LIMITS)
    yield one
    one.close()


def test_a_worker_sees_what_the_server_would(worker: Worker, tmp_path: Path) -> None:
    path = tmp_path / "p.jpg"
    Image.effect_noise((70, 50), 80).convert("RGB").save(path, quality=70)
    picture = worker.decode(item(path))
    assert isinstance(picture, Image.Image)
    assert picture.tobytes() == decode_image(path.read_bytes(), LIMITS).tobytes()
    assert (picture.size, picture.mode) == ((70, 50), "RGB")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the image is empty"),
        (b"hello", "the image must be one of JPEG, PNG, WEBP, GIF, BMP, TIFF, AVIF"),
        (png(1)[:50], "the image is broken or cut short"),
        (bytes(10_001), "the file is above the limit of 10000 bytes"),
    ],
)
def test_a_worker_says_why_a_picture_is_none(
    worker: Worker, tmp_path: Path, content: bytes, reason: str
) -> None:
    path = tmp_path / "p.png"
    path.write_bytes(content)
    error = worker.decode(item(path))
    assert isinstance(error, PictureError)
    assert str(error) == reason


def test_the_death_of_a_worker_is_told_with_its_status() -> None:
    before = multiprocessing.active_children()
    worker = Worker(LIMITS)
    (process,) = set(multiprocessing.active_children()) - set(before)
    process.kill()
    with pytest.raises(WorkerDied, match="ended with status -9"):
        worker.decode(item(Path("p.png")))


def test_a_picture_that_kills_its_worker_costs_no_other(tmp_path: Path) -> None:
    paths = write_pictures(tmp_path, ["a.png", "b.png", "c.png"])
    before = set(multiprocessing.active_children())
    decoders = Decoders(1, LIMITS)
    results = []
    try:
        for number, path in enumerate(paths):
            decoders.submit(number, item(path))
            decoded = decoders.take()
            assert decoded is not None
            results.append(decoded)
            if number == 0:
                (process,) = set(multiprocessing.active_children()) - before
                process.kill()
                process.join()
    finally:
        decoders.close()
    assert [number for number, _ in results] == [0, 1, 2]
    kinds = [type(result) for _, result in results]
    assert kinds == [Image.Image, PictureError, Image.Image]


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    (path,) = write_pictures(tmp_path, ["a.png"])
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, script, path],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        parent.send_signal(signal.SIGKILL)
        # The workers hold it too, so that its end is theirs.
        assert parent.stdout.read() == b""


def test_few_pictures_are_decoded_without_a_process(tmp_path: Path) -> None:
    (good, bad) = write_pictures(tmp_path, ["a.png", "b.png"])
    bad.write_bytes(b"")
    before = set(multiprocessing.active_children())
    decoders = Decoders(0, LIMITS)
    try:
        decoders.submit(0, item(good))
        decoders.submit(1, item(bad))
        found = dict([decoders.take() or (-1, None), decoders.take() or (-1, None)])
        assert set(multiprocessing.active_children()) == before
    finally:
        decoders.close()
    assert isinstance(found[0], Image.Image)
    assert str(found[1]) == "the image is empty"
