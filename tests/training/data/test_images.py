"""Pictures of training data are decoded as those of requests are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from picture_files import encode, noise
from picture_mutations import corpus
from PIL import Image

from server.images.decode import ImageLimits, decode_image
from training.data.images import ImageError, open_rgb

if TYPE_CHECKING:
    from pathlib import Path


def test_training_sees_the_pixels_that_are_served() -> None:
    files = corpus()
    assert len(files) > 40
    for file in files:
        assert open_rgb(file).tobytes() == decode_image(file, ImageLimits()).tobytes()


def test_transparency_is_white_and_sixteen_bits_are_scaled() -> None:
    clear = encode(Image.new("RGBA", (1, 1), (255, 0, 0, 0)), "PNG")
    assert open_rgb(clear).getpixel((0, 0)) == (255, 255, 255)
    for level, grey in ((0, 0), (128, 0), (129, 1), (65535, 255)):
        wide = encode(Image.new("I;16", (1, 1), level), "PNG")
        assert open_rgb(wide).getpixel((0, 0)) == (grey,) * 3


def test_a_file_that_is_not_read_is_named_with_its_format(tmp_path: Path) -> None:
    path = tmp_path / "a.heic"
    path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    with pytest.raises(ImageError, match=r"a\.heic cannot be decoded: the file is HEIC"):
        open_rgb(path)
    with pytest.raises(ImageError, match="No such file"):
        open_rgb(tmp_path / "b.png")


def test_a_file_of_training_may_be_larger_than_one_that_is_sent(tmp_path: Path) -> None:
    path = tmp_path / "a.bmp"
    noise(3000, 2500).save(path)
    assert path.stat().st_size > ImageLimits().max_bytes
    assert open_rgb(path).size == (3000, 2500)
