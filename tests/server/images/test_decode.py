"""The image door: every way a picture can be good, odd, broken or hostile."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from picture_files import chunk, encode, noise, png
from PIL import Image, ImageSequence

from rediff_model.files.image_formats.jpeg import MAX_SCANS
from rediff_model.files.image_formats.names import FORMATS
from server.images.decode import ImageError, ImageLimits, decode_image

LIMITS = ImageLimits(max_bytes=2**20, max_pixels=1_000_000, max_side=5_000)


def refusal(data: bytes, limits: ImageLimits = LIMITS) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode_image(data, limits)
    message = str(caught.value)
    assert "0x" not in message
    assert "/" not in message
    assert "<" not in message
    return caught.value


def attempt(data: bytes) -> Image.Image | int:
    """The picture, or the status of its refusal."""
    try:
        return decode_image(data, LIMITS)
    except ImageError as error:
        return error.status


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_lossless_pixels_come_through(kind: str) -> None:
    image = noise()
    decoded = decode_image(encode(image, kind, lossless=True), LIMITS)
    assert decoded.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(decoded), np.asarray(image))


@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_is_what_pillow_decodes(progressive: bool) -> None:
    data = encode(noise(), "JPEG", progressive=progressive)
    np.testing.assert_array_equal(
        np.asarray(decode_image(data, LIMITS)), np.asarray(Image.open(BytesIO(data)))
    )


def test_cmyk_jpeg_becomes_rgb() -> None:
    red = Image.new("RGB", (32, 32), "red").convert("CMYK")
    decoded = np.asarray(decode_image(encode(red, "JPEG", quality=95), LIMITS)).astype(int)
    assert np.abs(decoded - [255, 0, 0]).max() < 12


def test_grey_one_bit_and_palette_pictures_become_rgb() -> None:
    grey = noise(channels=1)
    for image in (grey, grey.convert("1"), noise().convert("P", palette=Image.Palette.ADAPTIVE)):
        decoded = decode_image(encode(image, "PNG"), LIMITS)
        np.testing.assert_array_equal(np.asarray(decoded), np.asarray(image.convert("RGB")))


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    levels = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.uint16)
    decoded = np.asarray(decode_image(encode(Image.fromarray(levels), "PNG"), LIMITS))
    assert decoded[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]
    assert (decoded == decoded[..., :1]).all()


def test_sixteen_bit_grey_with_a_transparent_level_shows_white_there() -> None:
    levels = np.array([[300, 301]], dtype=np.uint16)
    data = encode(Image.fromarray(levels), "PNG", transparency=300)
    assert np.asarray(decode_image(data, LIMITS))[0, :, 0].tolist() == [255, 1]


def test_sixteen_bit_colour_is_scaled() -> None:
    row = b"\0" + struct.pack(">6H", 65535, 0, 32768, 0, 65535, 257)
    decoded = np.asarray(decode_image(png(2, 1, 16, 2, row), LIMITS))
    assert decoded.tolist() == [[[255, 0, 128], [0, 255, 1]]]


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparent_pixels_show_white(kind: str) -> None:
    image = Image.new("RGBA", (4, 1))
    image.putdata([(255, 0, 0, 255), (255, 0, 0, 0), (0, 0, 0, 128), (0, 0, 255, 255)])
    decoded = np.asarray(decode_image(encode(image, kind, lossless=True, exact=True), LIMITS))
    assert decoded[0].tolist() == [[255, 0, 0], [255, 255, 255], [127, 127, 127], [0, 0, 255]]


def test_grey_with_alpha_shows_white() -> None:
    image = Image.new("LA", (2, 1))
    image.putdata([(10, 255), (10, 0)])
    assert np.asarray(decode_image(encode(image, "PNG"), LIMITS))[0, :, 0].tolist() == [10, 255]


def test_palette_with_transparency_shows_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    decoded = decode_image(encode(image, "PNG", transparency=bytes([0, 255])), LIMITS)
    assert np.asarray(decoded)[0].tolist() == [[255, 255, 255], [40, 50, 60]]


def test_a_transparent_colour_shows_white() -> None:
    image = Image.new("RGB", (2, 1))
    image.putdata([(1, 2, 3), (4, 5, 6)])
    decoded = decode_image(encode(image, "PNG", transparency=(1, 2, 3)), LIMITS)
    assert np.asarray(decoded)[0].tolist() == [[255, 255, 255], [4, 5, 6]]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_exif_orientation_is_undone(kind: str, orientation: int) -> None:
    upright = noise(6, 4)
    # How a camera held in each of the eight ways would have stored the upright picture.
    stored = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a),
        7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }[orientation](np.asarray(upright))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(stored.copy()), kind, exif=exif, lossless=True)
    np.testing.assert_array_equal(np.asarray(decode_image(data, LIMITS)), np.asarray(upright))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("block", [b"Exif\0\0", b"Exif\0\0MM\0*garbage", b"\xff" * 40])
def test_a_broken_exif_block_does_not_spoil_the_picture(block: bytes) -> None:
    assert decode_image(encode(noise(), "JPEG", exif=block), LIMITS).size == (60, 40)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_only_the_first_frame_of_an_animation_is_used(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    assert len(list(ImageSequence.Iterator(Image.open(BytesIO(data))))) == 3
    assert decode_image(data, LIMITS).getcolors() == [(64, (255, 0, 0))]


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
@pytest.mark.parametrize("kind", FORMATS)
def test_tiny_and_extreme_sizes_decode(kind: str, size: tuple[int, int]) -> None:
    assert decode_image(encode(Image.new("RGB", size), kind), LIMITS).size == size


def test_an_empty_body_is_400() -> None:
    assert (refusal(b"").status, refusal(b"").code) == (400, "image_empty")


@pytest.mark.parametrize(
    "data",
    [
        b"hello, this is text",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.7\n",
        b"\0" * 64,
        b"RIFF\x24\0\0\0WAVEfmt ",
        encode(noise(), "PPM"),
    ],
    ids=["text", "svg", "pdf", "zeros", "wave", "ppm"],
)
def test_other_formats_are_415(data: bytes) -> None:
    assert (refusal(data).status, refusal(data).code) == (415, "unsupported_image")


def test_a_picture_behind_another_format_is_415_and_before_one_decodes() -> None:
    picture, archive = encode(noise(), "PNG"), b"PK\x03\x04" + b"\0" * 40
    assert refusal(archive + picture).status == 415
    assert refusal(encode(noise(), "PPM") + picture).status == 415
    assert decode_image(picture + archive, LIMITS).size == (60, 40)


def test_a_signature_followed_by_another_format_is_400() -> None:
    for signature in (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP"):
        assert refusal(signature).status == 400
        assert refusal(signature + encode(noise(), "GIF")).status == 400


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("GIF", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_deflate"}),
        ("TIFF", {"compression": "jpeg"}),
        ("AVIF", {}),
    ],
)
def test_a_truncated_file_is_refused_or_complete(kind: str, options: dict[str, Any]) -> None:
    data = encode(noise(), kind, **options)
    whole = np.asarray(decode_image(data, LIMITS))
    # A BMP is known by its first eighteen bytes.
    for length in range(18, len(data) - 12, 50):
        assert refusal(data[:length]).status == 400, length
    for length in range(len(data) - 12, len(data)):
        # Without its last bytes a file may still hold every pixel: then they must be right.
        result = attempt(data[:length])
        if isinstance(result, int):
            assert result == 400
        else:
            np.testing.assert_array_equal(np.asarray(result), whole)


def test_a_png_that_is_cut_before_its_end_is_refused() -> None:
    """The four bytes behind the name of the last chunk say nothing of the picture."""
    data = encode(noise(), "PNG")
    for missing in range(5, 40):
        assert refusal(data[:-missing]).status == 400, missing


@pytest.mark.parametrize("kind", FORMATS)
def test_flipped_bytes_never_raise_anything_else(kind: str) -> None:
    data, random = encode(noise(24, 16), kind), np.random.default_rng(1)
    for _ in range(300):
        broken = bytearray(data)
        for position in random.integers(8, len(data), 4):
            broken[position] = int(random.integers(256))
        result = attempt(bytes(broken))
        assert result in (400, 413, 415) if isinstance(result, int) else result.mode == "RGB"


def test_a_file_above_the_byte_limit_is_413() -> None:
    limits = ImageLimits(max_bytes=100)
    assert refusal(encode(noise(), "PNG"), limits).status == 413


@pytest.mark.parametrize("side", [1001, 12_000, 50_000, 2**31 - 1])
def test_a_header_that_claims_too_many_pixels_is_413_before_decoding(side: int) -> None:
    # One byte of pixel data: decoding would fail as broken, so 413 shows the header was enough.
    refused = refusal(png(side, side, 8, 2, b"\0"))
    assert (refused.status, refused.code) == (413, "image_too_large")


def test_a_side_above_the_limit_is_413() -> None:
    assert refusal(encode(Image.new("1", (5001, 1)), "PNG")).status == 413


def test_a_webp_canvas_that_claims_too_many_pixels_is_413() -> None:
    data = bytearray(encode(noise().convert("RGBA"), "WEBP", exif=b"Exif\0\0x"))
    assert data[12:16] == b"VP8X"
    data[24:30] = (15_999).to_bytes(3, "little") * 2
    assert refusal(bytes(data)).status == 413


@pytest.mark.parametrize("sides", [(0, 5), (5, 0), (0, 0)])
def test_an_empty_picture_is_400(sides: tuple[int, int]) -> None:
    assert refusal(png(*sides, 8, 2, b"\0")).status == 400


def test_a_text_chunk_that_inflates_hugely_is_never_inflated() -> None:
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"a" * 20_000_000))
    data = png(1, 1, 8, 2, b"\0\1\2\3", extra=text * 8)
    assert len(data) < LIMITS.max_bytes
    assert decode_image(data, LIMITS).getpixel((0, 0)) == (1, 2, 3)


def test_a_jpeg_of_countless_scans_is_refused() -> None:
    data = encode(noise(), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    repeated = data[:-2] + data[last:-2] * MAX_SCANS + data[-2:]
    assert refusal(repeated).status == 400


def test_a_png_in_small_chunks_decodes() -> None:
    picture = noise(700, 700)
    raw = np.asarray(picture).reshape(700, 2100)
    pixels = zlib.compress(np.pad(raw, ((0, 0), (1, 0))).tobytes(), 0)
    parts = [chunk(b"IDAT", pixels[at : at + 256]) for at in range(0, len(pixels), 256)]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 700, 700, 8, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + b"".join(parts) + chunk(b"IEND", b"")
    assert len(parts) > 5_000
    assert decode_image(data, ImageLimits()).tobytes() == picture.tobytes()


MANY = 70_000


@pytest.mark.parametrize(
    ("kind", "place", "part"),
    [
        ("PNG", 33, chunk(b"prVt", b"")),
        ("PNG", 33, chunk(b"tEXt", b"a\0b")),
        ("PNG", -12, chunk(b"prVt", b"")),
        ("JPEG", 2, b"\xff\xfe\0\2"),
        ("JPEG", 2, b"\xff\xff"),
        ("JPEG", 2, b"\xff\0"),
    ],
)
def test_a_picture_of_countless_parts_is_refused(kind: str, place: int, part: bytes) -> None:
    data = encode(noise(), kind)
    refused = refusal(data[:place] + part * MANY + data[place:], ImageLimits())
    assert (refused.status, refused.code) == (400, "image_broken")
    assert "too many parts" in refused.message
