"""Rows from files and shards, pictures, and the order in which a mixture deals them."""

import io
import json
import os
import random
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from training.data.archive import by_name, members
from training.data.conversation import Row, Turn
from training.data.images import ImageError, ImageFolder, ImageShards, open_rgb
from training.data.mixture import Example, Mixture, MixtureError, Source
from training.data.problems import BadRow, Report
from training.data.row_files import RowFile, RowShards
from training.data.sample import Sample


def raw(text: str = "A dog.", image: str | None = "cat.png") -> dict[str, Any]:
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": text}]
    return {"conversations": turns} | ({"image": image} if image else {})


def picture(size: tuple[int, int] = (4, 3), mode: str = "RGB", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, options.pop("colour", 0)).save(buffer, "PNG", **options)
    return buffer.getvalue()


def shard(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def texts(source: RowFile | RowShards) -> list[str]:
    return [source.row(i).turns[-1].text for i in range(len(source))]


def test_json_lines_are_read_and_bad_lines_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps(raw("Ein Käse.")), "", "{broken", json.dumps({"id": 3}), "\udcff", "[1]"]
    good = json.dumps(raw("漢字", image=None), ensure_ascii=False)
    path.write_text("\n".join([*lines, good]), encoding="utf-8", errors="surrogateescape")
    report = Report()
    source = RowFile(path, report)
    assert texts(source) == ["Ein Käse.", "漢字"]
    assert source.row(1).where == f"{path}:7"
    assert [problem.where for problem in report.problems] == [f"{path}:{n}" for n in (3, 4, 5, 6)]
    assert report.counts == {"malformed": 4}
    assert source.size(0) == len("<image>\nWhat?Ein Käse.")
    assert source.size(1) == -len("<image>\nWhat?漢字")


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("indent", [None, 1])
def test_json_arrays_are_read_with_their_lines(
    tmp_path: Path, mark: bytes, indent: int | None
) -> None:
    path = tmp_path / "rows.json"
    rows = [raw("Käse 漢字 [{"), {"id": 1}, raw("zwei"), 5]
    path.write_bytes(mark + json.dumps(rows, indent=indent, ensure_ascii=False).encode())
    report = Report()
    source = RowFile(path, report)
    assert texts(source) == ["Käse 漢字 [{", "zwei"]
    assert report.counts == {"malformed": 2}
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    at = int(source.row(1).where.rpartition(":")[2])
    assert indent is None or '"zwei"' in "".join(lines[at - 1 : at + 12])
    assert indent is None or lines[at - 1].strip() == "{"


def test_a_broken_array_gives_the_rows_before_the_damage(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(f"[{json.dumps(raw('one'))},\n{json.dumps(raw('two'))[:-9]}")
    report = Report()
    assert texts(RowFile(path, report)) == ["one"]
    assert report.problems[0].where == f"{path}:2"
    assert "the rest is lost" in report.problems[0].reason


def test_shards_hold_rows_and_pictures(tmp_path: Path) -> None:
    first = shard(
        tmp_path / "0.tar",
        {
            "a/1.png": picture((4, 3)),
            "a/1.json": json.dumps(raw("one", image=None)).encode(),
            "a/2.json": json.dumps(raw("two", image="a/1.png")).encode(),
            "a/3.json": b"{",
            "a/4.txt": b"no row",
            "a/5.json": json.dumps(raw("no picture", image=None)).encode(),
        },
    )
    second = shard(
        tmp_path / "1.tar",
        {
            "a/1.json": json.dumps(raw("three", image=None)).encode(),
            "a/1.png": picture((7, 5)),
            "b.cat.png": picture((9, 9)),
        },
    )
    report = Report()
    source = RowShards([first, second], report)
    store = ImageShards(by_name(members([first, second], report)))
    assert texts(source) == ["one", "two", "no picture", "three"]
    assert [source.row(i).image for i in range(4)] == [
        "0.tar/a/1.png",
        "a/1.png",
        None,
        "1.tar/a/1.png",
    ]
    assert [problem.where for problem in report.problems] == [f"{first}:a/3.json"]
    assert store.open("0.tar/a/1.png").size == (4, 3)
    assert store.open("1.tar/a/1.png").size == (7, 5)
    assert store.open("b.cat.png").size == (9, 9)
    with pytest.raises(ImageError, match="in several"):
        store.open("a/1.png")
    assert source.size(0) > 0 > source.size(2)


def test_a_text_of_a_shard_has_its_own_picture_or_none(tmp_path: Path) -> None:
    """Names share what comes before their first dot, and shards may share theirs."""
    files: dict[str, bytes] = {}
    for number in (1, 2):
        files[f"photo.{number}.png"] = picture((number, 1))
        files[f"photo.{number}.json"] = json.dumps(raw(f"{number}", image=None)).encode()
    files["photo.3.json"] = json.dumps(raw("3", image=None)).encode()
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    first = shard(tmp_path / "a" / "0.tar", files)
    second = shard(
        tmp_path / "b" / "0.tar",
        {"photo.1.png": picture((9, 1)), "photo.1.json": files["photo.1.json"]},
    )
    report = Report()
    source = RowShards([first, second], report)
    store = ImageShards(by_name(members([first, second], report)))
    images = [source.row(i).image for i in range(4)]
    assert images[2] is None
    assert [store.open(image).width for image in images if image] == [1, 2, 9]
    with pytest.raises(ImageError, match="in several"):
        store.open("0.tar/photo.1.png")


@pytest.mark.parametrize("more", ["5", "[7]"])
def test_what_follows_an_array_is_not_lost_in_silence(tmp_path: Path, more: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f"[{json.dumps(raw('one'))}]\n\n{more}\n")
    report = Report()
    assert texts(RowFile(path, report)) == ["one"]
    assert [problem.where for problem in report.problems] == [f"{path}:1"]
    assert "the rest is lost" in report.problems[0].reason


def test_broken_shards_are_reported(tmp_path: Path) -> None:
    whole = shard(tmp_path / "0.tar", {f"{i}.json": json.dumps(raw()).encode() for i in range(9)})
    cut = tmp_path / "1.tar"
    cut.write_bytes(whole.read_bytes()[:3000])
    packed = tmp_path / "2.tar.gz"
    with tarfile.open(packed, "w:gz"):
        pass
    report = Report()
    source = RowShards([whole, cut, packed, tmp_path / "none.tar"], report)
    assert 9 < len(source) < 18
    where = {problem.where for problem in report.problems}
    assert where == {str(cut), str(packed), str(tmp_path / "none.tar")}


def test_pictures_are_opened_upright_as_rgb(tmp_path: Path) -> None:
    tagged = Image.new("RGB", (4, 2))
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "a.jpg"
    tagged.save(path, exif=exif)
    assert open_rgb(path).size == (2, 4)
    assert open_rgb(picture(mode="LA", colour=(200, 0))).getpixel((0, 0)) == (255, 255, 255)
    assert open_rgb(picture(mode="I;16", colour=51400)).getpixel((0, 0)) == (200, 200, 200)
    assert open_rgb(picture(mode="P", transparency=b"\0\1\2")).mode == "RGB"
    assert open_rgb(picture(mode="1", colour=1)).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "cannot"),
        (b"hello", "cannot"),
        (picture()[:40], "cannot"),
        (picture((64, 64))[:-30], "cannot"),
        (picture((101, 10)), "101 x 10 pixels, above the limit of 1000"),
    ],
)
def test_bad_pictures_are_errors(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        open_rgb(data, max_pixels=1000 if "pixels" in reason else 10**6)


def test_a_huge_header_is_refused_before_decoding() -> None:
    huge = bytearray(picture())
    huge[16:24] = (60000).to_bytes(4, "big") * 2
    with pytest.raises(ImageError):
        open_rgb(bytes(huge))


@given(st.binary(max_size=200), st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_damaged_pictures_never_raise_anything_else(noise: bytes, at: int) -> None:
    data = bytearray(picture((30, 30)))
    at %= len(data)
    data[at : at + len(noise)] = noise
    try:
        assert open_rgb(bytes(data)).mode == "RGB"
    except ImageError as error:
        assert str(error)  # noqa: PT017


def test_a_folder_does_not_lead_outside(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out.png").write_bytes(picture())
    (tmp_path / "in" / "a.png").write_bytes(picture())
    store = ImageFolder(tmp_path / "in")
    assert store.open("a.png").size == (4, 3)
    for name in ("../out.png", str(tmp_path / "out.png")):
        with pytest.raises(ImageError, match="outside"):
            store.open(name)
    with pytest.raises(ImageError, match=r"b\.png"):
        store.open("b.png")


def test_links_inside_a_data_folder_are_followed_and_names_do_not_climb(tmp_path: Path) -> None:
    data, blobs = tmp_path / "data", tmp_path / "blobs"
    (blobs / "deep").mkdir(parents=True)
    data.mkdir()
    (blobs / "abc").write_bytes(picture())
    (blobs / "deep" / "b.png").write_bytes(picture((5, 5)))
    # As the caches of hubs are, and disks of another place.
    (data / "a.png").symlink_to("../blobs/abc")
    (data / "coco").symlink_to(blobs / "deep")
    (data / "circle").symlink_to(data)
    (data / "round.png").symlink_to("round.png")
    (data / "gone.png").symlink_to(tmp_path / "unmounted" / "c.png")
    (data / "zeros.png").symlink_to("/dev/zero")
    os.mkfifo(data / "pipe.png")
    (tmp_path / "link").symlink_to(data)
    for root in (data, tmp_path / "link"):
        store = ImageFolder(root)
        assert store.open("a.png").size == (4, 3)
        assert store.open("coco/b.png").size == (5, 5)
        assert store.open("circle/circle/coco/../a.png").size == (4, 3)
        assert store.open(str(root / "a.png")).size == (4, 3)
        for name in ("../blobs/abc", "coco/../../blobs/abc", str(blobs / "abc"), "/"):
            with pytest.raises(ImageError, match="outside"):
                store.open(name)
        # Behind the link this would be a picture; by its text it is not there.
        with pytest.raises(ImageError, match="No such file"):
            store.open("coco/../abc")
        for name in ("round.png", "gone.png", "pipe.png", "zeros.png"):
            with pytest.raises(ImageError, match=name):
                store.open(name)


class Rows:
    """Rows made up on the spot; those in `bad` cannot be rendered."""

    def __init__(self, name: str, count: int, bad: tuple[int, ...] = ()) -> None:
        self.name, self.count, self.bad = name, count, bad

    def __len__(self) -> int:
        return self.count

    def row(self, index: int) -> Row:
        text = "!" if index in self.bad else "x" * (1 + index % 40)
        return Row(f"{self.name}:{index}", (Turn("assistant", text),))

    def size(self, index: int) -> int:
        return 1 + index % 40


class NoImages:
    def open(self, name: str) -> Image.Image:
        raise ImageError(name)


def render(row: Row) -> Sample:
    if row.turns[0].text == "!":
        raise BadRow("malformed", row.where, "made up")
    return Sample(row.where, (1,) * row.size, (1,) * row.size, (False,) * row.size, 0)


def mixture(
    *parts: tuple[str, int, float], batch: int = 8, seed: int = 1, **options: Any
) -> Mixture:
    sources = [Source(name, Rows(name, count), NoImages(), weight) for name, count, weight in parts]
    return Mixture(sources, render, batch_size=batch, seed=seed, **options)


def names(examples: list[Example]) -> list[str]:
    return [example.sample.where for example in examples]


def test_every_row_comes_once_an_epoch() -> None:
    dealt = mixture(("a", 64, 1.0), block_batches=3)
    report = Report()
    seen = Counter(name for step in range(24) for name in names(dealt.batch(step, report)))
    assert set(seen.values()) == {3}
    assert len(seen) == 64
    assert dealt.steps(3) == 24


def test_weights_are_kept_in_every_block() -> None:
    dealt = mixture(("a", 1000, 5.0), ("b", 10, 3.0), block_batches=8)
    for block in range(3):
        counts = Counter(
            example.source
            for step in range(8 * block, 8 * block + 8)
            for example in dealt.batch(step, Report())
        )
        assert counts == {"a": 40, "b": 24}
    assert dealt.steps() == 200


@given(st.integers(0, 500), st.sampled_from([1, 2, 4, 8]), st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_a_step_does_not_depend_on_what_was_dealt_before(step: int, world: int, seed: int) -> None:
    parts = (("a", 101, 1.0), ("b", 37, 0.4))
    fresh = mixture(*parts, seed=seed)
    whole = fresh.batch(step, Report())
    used = mixture(*parts, seed=seed)
    for earlier in (step // 2, step + 3):
        used.batch(earlier, Report())
    shares = [used.batch(step, Report(), rank, world) for rank in range(world)]
    together = sorted((example for share in shares for example in share), key=lambda e: e.key)
    assert together == whole
    assert [example.key for example in whole] == list(range(step * 8, step * 8 + 8))
    assert {len(share) for share in shares} == {8 // world}


def test_seeds_differ_and_epochs_are_shuffled() -> None:
    report = Report()
    one, two = mixture(("a", 64, 1.0)), mixture(("a", 64, 1.0), seed=2)
    order = [[name for s in range(8) for name in names(m.batch(s, report))] for m in (one, two)]
    again = [name for step in range(8, 16) for name in names(one.batch(step, report))]
    assert order[0] != order[1]
    assert order[0] != again


def test_lengths_are_grouped_but_batches_are_not_in_order() -> None:
    def spread(group: bool) -> tuple[float, list[int]]:
        dealt = mixture(("a", 4000, 1.0), group_lengths=group)
        sizes = [
            [len(example.sample.ids) for example in dealt.batch(step, Report())]
            for step in range(64)
        ]
        return sum(max(batch) - min(batch) for batch in sizes) / 64, [max(b) for b in sizes]

    grouped, longest = spread(True)
    ungrouped, _ = spread(False)
    assert grouped < 2
    assert ungrouped > 25
    assert longest != sorted(longest)


def test_bad_rows_are_replaced_by_others_of_their_source() -> None:
    sources = [
        Source("a", Rows("a", 50, bad=tuple(range(0, 50, 3))), NoImages()),
        Source("b", Rows("b", 50), NoImages()),
    ]
    dealt = Mixture(sources, render, batch_size=10, seed=0, block_batches=2)
    report = Report()
    counts: Counter[str] = Counter()
    for step in range(10):
        for example in dealt.batch(step, report):
            counts[example.source] += 1
            assert example.sample.where not in {problem.where for problem in report.problems}
    assert counts == {"a": 50, "b": 50}
    assert report.counts == {"malformed": 17}


@pytest.mark.parametrize(("count", "good"), [(2, 0), (2, 1), (3, 1), (7, 6)])
def test_the_only_usable_row_of_a_small_source_is_drawn_again(count: int, good: int) -> None:
    bad = tuple(row for row in range(count) if row != good)
    sources = [Source("a", Rows("a", count, bad), NoImages())]
    for seed in range(5):
        dealt = Mixture(sources, render, batch_size=2, seed=seed, block_batches=3)
        report = Report()
        drawn = {name for step in range(20) for name in names(dealt.batch(step, report))}
        assert drawn == {f"a:{good}"}
        assert report.counts == {"malformed": len(bad)}


def test_broken_pictures_are_reported_with_the_row_and_replaced(tmp_path: Path) -> None:
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes(picture((i + 1, 1)) if i % 2 else b"broken")
    (tmp_path / "rows.jsonl").write_text(
        "\n".join(json.dumps(raw(f"{i}", f"{i}.png")) for i in range(6))
    )
    report = Report()
    source = Source("a", RowFile(tmp_path / "rows.jsonl", report), ImageFolder(tmp_path))
    dealt = Mixture([source], render, batch_size=6, seed=0)
    examples = dealt.batch(0, report)
    assert len(examples) == 6
    for example in examples:
        assert example.image is not None
        line = int(example.sample.where.rpartition(":")[2])
        assert example.image.width == line
        assert line % 2 == 0
    assert report.counts == {"image": 3}
    assert {problem.where for problem in report.problems} == {
        f"{tmp_path / 'rows.jsonl'}:{line}" for line in (1, 3, 5)
    }


def test_a_check_may_refuse_samples() -> None:
    def short(sample: Sample, image: Image.Image | None) -> None:
        if len(sample.ids) > 20 or image is not None:
            raise BadRow("truncated", sample.where, "too long")

    report = Report()
    dealt = mixture(("a", 40, 1.0), block_batches=5, check=short)
    examples = [example for step in range(5) for example in dealt.batch(step, report)]
    assert max(len(example.sample.ids) for example in examples) == 20
    assert report.counts == {"truncated": 20}


def test_a_source_without_a_usable_row_is_an_error_that_names_it() -> None:
    bad = Source("bad", Rows("bad", 5, bad=tuple(range(5))), NoImages())
    with pytest.raises(MixtureError, match="5 rows of bad"):
        Mixture([bad], render, batch_size=2, seed=0).batch(0, Report())


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([], "needs a source"),
        ([("a", 0, 1.0)], "a has no rows"),
        ([("a", 5, 0.0)], "weight of a must be positive: 0.0"),
        ([("a", 5, float("nan"))], "nan"),
        ([("a", 5, 1.0), ("b", 5, 1e-6)], "1e-06 of b is too small"),
    ],
)
def test_bad_mixtures_are_refused(parts: list[tuple[str, int, float]], reason: str) -> None:
    with pytest.raises(MixtureError, match=reason):
        mixture(*parts)


def test_a_batch_must_divide_by_the_processes() -> None:
    with pytest.raises(MixtureError, match="0 of 3"):
        mixture(("a", 5, 1.0)).batch(0, Report(), 0, 3)


def test_places_stand_for_weights_of_any_kind() -> None:
    chance = random.Random(0)
    for _ in range(20):
        weights = [chance.uniform(0.1, 3) for _ in range(chance.randint(1, 6))]
        dealt = mixture(*((str(i), 7, weight) for i, weight in enumerate(weights)))
        counts = Counter(
            example.source for step in range(64) for example in dealt.batch(step, Report())
        )
        for i, weight in enumerate(weights):
            assert abs(counts[str(i)] - 512 * weight / sum(weights)) < 1


def test_hostile_rows_are_malformed_and_no_more(tmp_path: Path) -> None:
    good = json.dumps(raw()).encode()
    half = json.dumps(raw("\ud800")).encode()
    bad = [half, b"1" * 5000, b"[" * 100000, b"\xff\xfe\x00", b"null", b'{"image": NaN}']
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join([good, *bad, good + b"\r", b""]))
    report = Report()
    assert len(RowFile(path, report)) == 2
    assert [problem.where for problem in report.problems] == [f"{path}:{n}" for n in range(2, 8)]


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "\ud800.png", "."])
def test_names_that_no_file_can_have_are_bad_pictures(name: str, tmp_path: Path) -> None:
    with pytest.raises(ImageError):
        ImageFolder(tmp_path).open(name)


def test_a_shard_cut_within_a_header_is_reported(tmp_path: Path) -> None:
    path = shard(tmp_path / "0.tar", {"a.json": json.dumps(raw()).encode(), "a.png": picture()})
    whole = path.read_bytes()
    path.write_bytes(whole[:1400])
    report = Report()
    assert len(RowShards([path], report)) == 1
    assert [problem.reason for problem in report.problems] == [
        "not a whole, plain tar file: it is cut or overwritten at byte 1024"
    ]
    path.write_bytes(whole)
    assert RowShards([path], Report()).row(0).image == "cat.png"
