"""The decoder of pictures: formats, and what cameras, phones and programs add to them."""

from __future__ import annotations

import random
import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from picture_files import bmp, chunk, encode, gif, gif_frame, noise, png, tiff
from PIL import Image, ImageCms

from rediff_model.files.image_formats.limits import Limits, PictureError
from rediff_model.files.image_formats.names import SUFFIX, SUFFIXES, format_of
from rediff_model.files.pictures import decode

LIMITS = Limits(max_pixels=1_000_000, max_side=5_000)
PALETTE = bytes((0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255))


def pixels(data: bytes) -> Any:
    return np.asarray(decode(data, LIMITS))


def refusal(data: bytes, limits: Limits = LIMITS) -> PictureError:
    with pytest.raises(PictureError) as caught:
        decode(data, limits)
    return caught.value


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[0x0112] = orientation
    return block


LOSSLESS: list[tuple[str, dict[str, Any]]] = [
    ("PNG", {}),
    ("WEBP", {"lossless": True}),
    ("BMP", {}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("TIFF", {"compression": "tiff_deflate"}),
    ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ("TIFF", {"compression": "packbits"}),
    ("TIFF", {"big_tiff": True}),
    ("TIFF", {"tiffinfo": {278: 7}}),
]


@pytest.mark.parametrize(("kind", "options"), LOSSLESS)
def test_lossless_formats_come_through(kind: str, options: dict[str, Any]) -> None:
    image = noise()
    np.testing.assert_array_equal(pixels(encode(image, kind, **options)), np.asarray(image))


MODES = ("1", "L", "P", "RGB", "RGBA")
WRITTEN = {
    "GIF": (*MODES, "LA"),
    "BMP": MODES,
    "TIFF": (*MODES, "LA", "CMYK", "YCbCr"),
    "AVIF": (*MODES, "LA", "CMYK", "YCbCr"),
}
"""The modes that Pillow writes in each format."""


@pytest.mark.parametrize(
    ("kind", "mode"), [(kind, mode) for kind, modes in WRITTEN.items() for mode in modes]
)
def test_new_formats_are_what_pillow_decodes(kind: str, mode: str) -> None:
    data = encode(noise().convert(mode), kind)
    with Image.open(BytesIO(data)) as image:
        whole = image.convert("RGBA") if image.has_transparency_data else image.convert("RGB")
        expected = Image.new("RGBA", whole.size, "white")
        expected.paste(whole, mask=whole if whole.mode == "RGBA" else None)
    np.testing.assert_array_equal(pixels(data), np.asarray(expected.convert("RGB")))


@pytest.mark.parametrize("kind", ["AVIF", "TIFF", "WEBP", "PNG", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_undone(kind: str, orientation: int) -> None:
    corners = Image.new("RGB", (64, 32), "white")
    corners.paste("red", (0, 0, 32, 16))
    corners.paste("blue", (32, 0, 64, 16))
    turns = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    stored = corners
    if orientation > 1:
        stored = corners.transpose(Image.Transpose(turns[orientation]))
    decoded = decode(encode(stored, kind, exif=exif(orientation), quality=95), LIMITS)
    assert decoded.size == (64, 32)
    for place, colour in (((8, 8), (255, 0, 0)), ((56, 8), (0, 0, 255)), ((8, 24), (255,) * 3)):
        found = decoded.getpixel(place)
        assert isinstance(found, tuple)
        assert max(abs(a - b) for a, b in zip(found, colour, strict=True)) < 12


# What stands behind a picture.


def test_a_jpeg_with_random_bytes_behind_it_is_captioned() -> None:
    picture = encode(noise(), "JPEG")
    data = picture + random.Random(0).randbytes(8_000_000)
    assert data.count(b"\xff\xda") > 100
    np.testing.assert_array_equal(pixels(data), pixels(picture))


@pytest.mark.parametrize(
    "behind",
    [
        struct.pack(">I", 24) + b"ftypmp42" + b"\xff\xda" * 5000,
        encode(noise(), "JPEG", progressive=True) * 40,
        b"\0" * 100_000,
        b"\xff" * 100_000,
        b"\xff\xd9" * 50_000,
        b"SEFT" * 10,
    ],
)
def test_whatever_a_phone_appends_to_a_jpeg_is_not_looked_at(behind: bytes) -> None:
    picture = encode(noise(), "JPEG", progressive=True)
    np.testing.assert_array_equal(pixels(picture + behind), pixels(picture))


def test_scans_of_embedded_pictures_are_not_counted() -> None:
    picture = encode(noise(), "JPEG")
    thumbnail = encode(noise(), "JPEG", progressive=True) * 3 + b"\xff\xda" * 10_000
    for marker in (b"\xff\xe1", b"\xff\xe2", b"\xff\xed", b"\xff\xfe"):
        segment = marker + struct.pack(">H", len(thumbnail) + 2) + thumbnail
        data = picture[:2] + segment * 4 + picture[2:]
        np.testing.assert_array_equal(pixels(data), pixels(picture))


def test_scans_behind_a_fill_byte_are_counted() -> None:
    data = encode(noise(), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    scan = b"\xff\xff" + data[last:-2]
    assert "scans" in str(refusal(data[:-2] + scan * 101 + data[-2:]))


def test_a_jpeg_of_two_pictures_shows_the_first() -> None:
    first, second = Image.new("RGB", (32, 32), "red"), Image.new("RGB", (64, 64), "blue")
    data = encode(first, "MPO", save_all=True, append_images=[second])
    with Image.open(BytesIO(data)) as both:
        assert both.format == "MPO"
    assert decode(data, LIMITS).size == (32, 32)
    # The index names a second picture that an application has dropped.
    assert decode(data[: data.index(b"\xff\xd9") + 2], LIMITS).size == (32, 32)


@pytest.mark.parametrize("bits", [12, 16])
def test_a_jpeg_of_more_bits_is_named(bits: int) -> None:
    data = bytearray(encode(noise(), "JPEG"))
    data[data.index(b"\xff\xc0") + 4] = bits
    refused = refusal(bytes(data))
    assert (refused.reason, f"{bits} bits" in str(refused)) == ("unsupported", True)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_bytes_behind_any_other_picture_are_not_looked_at(kind: str) -> None:
    picture = encode(noise().quantize() if kind == "GIF" else noise(), kind)
    for behind in (b"PK\x03\x04" + b"\0" * 50_000, b"\0" * 9, b"\n"):
        np.testing.assert_array_equal(pixels(picture + behind), pixels(picture))


# What stands beside a picture.


def profile(size: int) -> bytes:
    made = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    # The time of making would give every test process other parameters.
    made[24:36] = bytes(12)
    return bytes(made).ljust(size, b"\0")


TEXT = random.Random(1).randbytes(750_000).hex()


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(TEXT.encode())),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(TEXT.encode() * 2)),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + TEXT.encode()),
        chunk(b"tEXt", b"parameters\0" + TEXT.encode()),
        chunk(b"iCCP", b"profile\0\0" + zlib.compress(profile(2_000_000))),
        chunk(b"zTXt", b"Comment\0\0" + b"no deflate"),
        chunk(b"iCCP", b"no end of the name"),
        chunk(b"caBX", TEXT.encode()),
        chunk(b"tIME", b"\0" * 7)[:-4] + b"\0\0\0\1",
        chunk(b"pHYs", b"\0" * 9)[:-4] + b"\0\0\0\1",
        chunk(b"gAMA", b"\0" * 4)[:-4] + b"\0\0\0\1",
        chunk(b"tEXt", b"a\0b")[:-4] + b"\0\0\0\1",
        chunk(b"tRNS", b"\0\1\0\2\0\3")[:-4] + b"\0\0\0\1",
        chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\0")[:-4] + b"\0\0\0\1",
    ],
    ids=lambda extra: f"{extra[4:8].decode()}-{len(extra)}-{zlib.crc32(extra):x}",
)
def test_a_png_is_captioned_whatever_its_ancillary_chunks_hold(extra: bytes) -> None:
    for data in (
        png(1, 1, 8, 2, b"\0\1\2\3", extra),
        png(1, 1, 8, 2, b"\0\1\2\3")[:-12] + extra + chunk(b"IEND", b""),
    ):
        assert decode(data, LIMITS).getpixel((0, 0)) == (1, 2, 3)


@pytest.mark.parametrize("kind", [b"IHDR", b"IDAT", b"PLTE"])
def test_a_critical_chunk_with_a_wrong_checksum_is_broken(kind: bytes) -> None:
    data = bytearray(encode(noise().quantize(), "PNG"))
    place = data.index(kind)
    (length,) = struct.unpack_from(">I", data, place - 4)
    data[place + 4 + length] ^= 1
    assert refusal(bytes(data)).reason == "broken"


def test_an_animated_png_shows_its_still_picture() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    for default in (False, True):
        data = encode(
            frames[0], "PNG", save_all=True, append_images=frames[1:], default_image=default
        )
        assert decode(data, LIMITS).getcolors() == [(64, (255, 0, 0))]


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF", "TIFF", "PNG"])
def test_large_metadata_of_any_format_is_no_obstacle(kind: str) -> None:
    options: dict[str, Any] = {"icc_profile": profile(2_000_000)}
    if kind == "TIFF":
        options["tiffinfo"] = {700: TEXT.encode(), 34675: profile(2_000_000), 37724: b"8BIM" * 9}
    elif kind == "JPEG":
        options["exif"] = b"Exif\0\0" + exif(1).tobytes()[6:] + b"\0" * 60_000
    elif kind != "PNG":
        options |= {"exif": exif(1).tobytes() + b"\0" * 1_000_000, "xmp": TEXT.encode()}
    image = Image.new("RGB", (16, 16), "white")
    assert decode(encode(image, kind, **options), LIMITS).getcolors() == [(256, (255,) * 3)]


# GIF.


def test_a_gif_frame_that_covers_a_part_stands_on_white() -> None:
    data = gif([gif_frame((1, 1, 2, 1), b"\1\2")], (4, 3), PALETTE)
    found = pixels(data)
    assert found[1, 1:3].tolist() == [[255, 0, 0], [0, 255, 0]]
    found = found.copy()
    found[1, 1:3] = 255
    assert (found == 255).all()


def test_the_transparent_colour_of_a_gif_is_white() -> None:
    control = b"!\xf9\4" + bytes((1 | 2 << 2, 9, 9, 1)) + b"\0"
    data = gif([gif_frame((0, 0, 2, 1), b"\1\2", control)], (2, 1), PALETTE)
    assert pixels(data).tolist() == [[[255, 255, 255], [0, 255, 0]]]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "AVIF", "TIFF"])
def test_the_first_frame_is_used(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("white", "black", "blue")]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
    with Image.open(BytesIO(data)) as image:
        assert getattr(image, "n_frames", 1) == 3
    assert decode(data, LIMITS).getcolors() == [(256, (255, 255, 255))]


def test_a_gif_with_huge_comments_is_captioned() -> None:
    comment = b"!\xfe" + (b"\xff" + b"c" * 255) * 40_000 + b"\0\0"
    data = gif([gif_frame((0, 0, 2, 1), b"\1\2")], (2, 1), PALETTE, comment)
    assert len(data) > 10_000_000
    assert pixels(data).tolist() == [[[255, 0, 0], [0, 255, 0]]]


def test_a_gif_of_countless_blocks_is_refused() -> None:
    for part in (b"!\xfe\1c\0", b"!\xff\0", b"!\xfe" + b"\1c" * 200 + b"\0", b"\0"):
        data = gif([gif_frame((0, 0, 1, 1), b"\1")], (1, 1), PALETTE, part * 30_000)
        assert "too many parts" in str(refusal(data))


@pytest.mark.parametrize("screen", [(30_000, 2_000), (1, 1)])
def test_a_gif_that_claims_too_many_pixels_is_refused(screen: tuple[int, int]) -> None:
    frame = gif_frame((0, 0, 2_000, 2_000), b"\1")
    assert refusal(gif([frame], screen, PALETTE)).reason == "too_large"


def test_a_gif_without_a_frame_is_broken() -> None:
    for frames in ([], [b"!\xf9\4"], [b"!\xfe\xff"], [b","], [b"?"]):
        assert refusal(gif(frames, (1, 1), PALETTE)).reason == "broken"


# BMP.


def test_a_bmp_from_the_top_is_upright() -> None:
    rows = b"\0\0\xff\0" + b"\xff\0\0\0"
    assert pixels(bmp(1, -2, 24, rows)).tolist() == [[[255, 0, 0]], [[0, 0, 255]]]
    assert pixels(bmp(1, 2, 24, rows)).tolist() == [[[0, 0, 255]], [[255, 0, 0]]]


def test_an_unused_alpha_channel_of_a_bmp_hides_nothing() -> None:
    header = struct.pack("<IiiHHIIiiII4I", 56, 2, 1, 1, 32, 3, 8, 0, 0, 0, 0, *MASKS)
    for alpha, first in ((0, [3, 2, 1]), (255, [255, 255, 255])):
        body = bytes((1, 2, 3, 0, 4, 5, 6, alpha))
        data = b"BM" + struct.pack("<IHHI", 0, 0, 0, 70) + header + body
        assert pixels(data).tolist() == [[first, [6, 5, 4]]]


MASKS = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)


def test_a_bmp_of_runs_is_read() -> None:
    row = b"".join(bytes((1, column % 256)) for column in range(400)) + b"\0\0"
    found = pixels(bmp(400, 200, 8, row * 200, compression=1, colours=256))
    assert found.shape == (200, 400, 3)
    assert found[:, 258].tolist() == [[253, 0, 0]] * 200


def test_a_bmp_of_runs_may_be_of_four_million_pixels() -> None:
    """A row may be two bytes long, and each of its pixels is filled in Python."""
    for side, reason in ((2048, "broken"), (2049, "too_large")):
        data = bmp(side, side, 8, b"\0\1", compression=1, colours=2)
        with pytest.raises(PictureError) as caught:
            decode(data, Limits())
        assert caught.value.reason == reason


@pytest.mark.parametrize("size", [(100_000, 1), (2_000, 2_000), (2**31 - 1, 2**31 - 1)])
def test_a_bmp_that_claims_too_many_pixels_is_refused(size: tuple[int, int]) -> None:
    assert refusal(bmp(*size, 24, b"\0" * 8)).reason == "too_large"


def test_a_text_that_begins_with_bm_is_no_bmp() -> None:
    assert refusal(b"BMW builds cars in Munich since 1916.").reason == "unsupported"


# TIFF.


def grey(bits: int, body: bytes, photometric: int = 1, **options: Any) -> bytes:
    width = len(body) * 8 // bits
    tags = {256: [width], 257: [1], 258: [bits], 262: [photometric], 278: [1]}
    return tiff(tags, body, **options)


@pytest.mark.parametrize(("order", "big"), [("<", False), (">", False), ("<", True)])
def test_sixteen_bit_tiffs_are_scaled_like_pngs(order: str, big: bool) -> None:
    levels = struct.pack(order + "6H", 0, 128, 129, 257, 32768, 65535)
    data = grey(16, levels, order=order, big=big)
    assert pixels(data)[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]


def test_a_big_tiff_that_pillow_cannot_read_is_named() -> None:
    refused = refusal(grey(8, b"\1", order=">", big=True))
    assert (refused.reason, "BigTIFF" in str(refused)) == ("unsupported", True)


def test_tiffs_in_which_white_is_zero_are_not_negatives() -> None:
    assert pixels(grey(8, bytes((0, 255)), 0))[0, :, 0].tolist() == [255, 0]
    assert pixels(grey(16, struct.pack("<2H", 0, 65535), 0))[0, :, 0].tolist() == [255, 0]


def test_twelve_bits_are_scaled_too() -> None:
    assert pixels(grey(12, b"\xff\xf0\x00"))[0, :, 0].tolist() == [255, 0]


@pytest.mark.parametrize(("mode", "named"), [("F", "mode F"), ("I", "mode I"), ("LAB", "mode LAB")])
def test_tiffs_of_no_known_white_are_named(mode: str, named: str) -> None:
    refused = refusal(encode(Image.new(mode, (4, 4)), "TIFF"))
    assert (refused.reason, named in str(refused)) == ("unsupported", True)


@pytest.mark.parametrize(("name", "number"), [("lzma", 34925), ("zstd", 50000)])
def test_a_compression_that_is_not_read_is_named(name: str, number: int) -> None:
    refused = refusal(encode(noise(), "TIFF", compression=name))
    assert (refused.reason, str(number) in str(refused)) == ("unsupported", True)


def test_fax_pages_and_jpegs_in_tiffs_are_read() -> None:
    page = noise().convert("1")
    for compression in ("group3", "group4", "tiff_ccitt"):
        found = pixels(encode(page, "TIFF", compression=compression))
        np.testing.assert_array_equal(found, np.asarray(page.convert("RGB")))
    red = Image.new("RGB", (32, 32), "red")
    assert (
        np.abs(
            pixels(encode(red, "TIFF", compression="jpeg")).astype(int)[0, 0] - [255, 0, 0]
        ).max()
        < 4
    )


def test_a_cameras_raw_file_is_named_instead_of_its_thumbnail_captioned() -> None:
    tags = {256: [1], 257: [1], 258: [8], 262: [1]}
    thumbnail = {**tags, 254: [1], 330: [8]}
    for data in (tiff({**tags, 50706: [1]}, b"\0"), tiff(thumbnail, b"\0")):
        assert (refusal(data).reason, "camera raw" in str(refusal(data))) == ("unsupported", True)
    assert decode(tiff({**tags, 254: [1]}, b"\7"), LIMITS).getpixel((0, 0)) == (7, 7, 7)


def with_page(entries: bytes, count: int, rest: bytes = b"") -> bytes:
    return b"II*\0\x08\0\0\0" + struct.pack("<H", count) + entries + b"\0\0\0\0" + rest


def test_tags_that_are_not_used_are_not_read_however_large() -> None:
    """Each of many tags may name the whole file: read, they would be a thousand times as large."""
    used = [(256, 1), (257, 1), (258, 8), (262, 1), (273, 0), (278, 1), (279, 1)]
    count = 60_000
    page = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in used)
    page += b"".join(
        struct.pack("<HHII", 1000 + i, 1, 700_000, 0) for i in range(count - len(used))
    )
    assert decode(with_page(page, count), LIMITS).size == (1, 1)


def test_a_used_tag_of_megabytes_is_refused() -> None:
    used = [(256, 1), (257, 1), (258, 8), (262, 1), (278, 1), (279, 1)]
    page = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in used)
    page += struct.pack("<HHII", 273, 4, 2**20, 8)
    assert refusal(with_page(page, 7, b"\0" * 2**23)).reason == "broken"


def test_pages_that_lead_in_a_circle_and_pages_that_are_not_there() -> None:
    data = bytearray(grey(8, b"\1\2"))
    (first,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, first)
    struct.pack_into("<I", data, first + 2 + 12 * count, first)
    assert pixels(bytes(data))[0, :, 0].tolist() == [1, 2]
    for place in (0, 3, len(data) - 1, len(data), 2**32 - 1):
        struct.pack_into("<I", data, 4, place)
        assert refusal(bytes(data)).reason == "broken", place
    assert refusal(b"II*\0").reason == "broken"
    assert refusal(b"II+\0\x08\0\0\0" + b"\xff" * 40).reason == "broken"


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({256: [100_000], 257: [1]}, "too_large"),
        ({256: [2_000], 257: [2_000]}, "too_large"),
        ({256: [2**32 - 1], 257: [2**32 - 1]}, "too_large"),
        ({256: [1], 257: [1], 322: [65_520], 323: [65_520], 324: [8], 325: [1]}, "too_large"),
        ({256: [0], 257: [1]}, "broken"),
        ({257: [1]}, "broken"),
        ({256: [1, 2], 257: [1]}, "broken"),
        ({256: [1], 257: [1], 277: [60_000]}, "broken"),
    ],
)
def test_sizes_of_tiffs_are_checked_before_anything_is_decoded(
    tags: dict[int, list[int]], reason: str
) -> None:
    for compression in (1, 5, 8):
        data = tiff({258: [8], 262: [1], **tags, 259: [compression]}, b"\0" * 8)
        assert refusal(data).reason == reason


# Formats that are not read.


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypheix\0\0\0\0mif1heix", "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x14ftypmsf1\0\0\0\0msf1", "HEIF"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + b"\0" * 20, "JPEG XL"),
        (b"\xff\x0a\xfa\x1f", "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b'<svg xmlns="http://www.w3.org/2000/svg" width="1">', "SVG"),
        (b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- made by hand -->\n<svg width="1">', "SVG"),
        (b"%PDF-1.7\n", "PDF"),
        (b"8BPS\0\1", "PSD"),
        (b"\0\0\0\x1cftypmp42\0\0\0\0isommp42", "video"),
        (b"\0\0\0\x14ftypqt  \0\0\0\0qt  ", "video"),
        (b"\x1a\x45\xdf\xa3\x9fB\x86", "video"),
        (b"RIFF\x10\0\0\0AVI LIST", "video"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "camera raw"),
        (b"<!DOCTYPE html>\n<html><head><title>404", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "Git LFS pointer"),
        (b"\0\0\1\0\1\0\x10\x10", "ICO"),
        (encode(noise(), "PPM"), "PNM"),
        (b"PK\x03\x04\x14\0", "ZIP"),
    ],
)
def test_the_message_names_what_the_file_is(data: bytes, name: str) -> None:
    refused = refusal(data + b"\0" * 40)
    assert refused.reason == "unsupported"
    assert str(refused).startswith(f"the file is {name}, which is not read: the image must be one")


def test_an_unknown_file_is_told_what_is_read() -> None:
    message = "the image must be one of JPEG, PNG, WEBP, GIF, BMP, TIFF, AVIF"
    for data in (b"hello, this is text", b"\0" * 64, b"\xff", b"RIFF", b"II*"):
        assert str(refusal(data)) == message


def test_suffixes_are_of_all_formats_and_of_phones() -> None:
    assert set(SUFFIX.values()) < set(SUFFIXES)
    assert {".jpeg", ".tiff", ".heic"} < set(SUFFIXES)
    for kind, suffix in SUFFIX.items():
        data = BytesIO()
        noise().save(data, Image.registered_extensions()[suffix])
        assert format_of(data.getvalue()) == kind
