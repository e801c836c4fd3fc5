"""The cache of picture features: what is kept, what is dropped, what counts as the same."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from PIL import Image

from server.engine.feature_cache import FeatureCache, content_key


def test_the_least_recently_used_is_dropped_when_the_bytes_are_full() -> None:
    cache = FeatureCache(3 * 40)
    features = {key: torch.full((10,), float(key[0])) for key in (b"1", b"2", b"3", b"4")}
    for key in (b"1", b"2", b"3"):
        cache.put(key, features[key])
    assert cache.get(b"1") is features[b"1"]
    cache.put(b"4", features[b"4"])
    assert cache.get(b"2") is None
    assert all(cache.get(key) is not None for key in (b"1", b"3", b"4"))
    assert (cache.bytes, len(cache)) == (120, 3)


def test_what_is_put_twice_counts_once_and_what_is_too_large_not_at_all() -> None:
    cache = FeatureCache(100)
    for _ in range(3):
        cache.put(b"1", torch.zeros(10))
    cache.put(b"2", torch.zeros(26))
    assert (cache.bytes, len(cache)) == (40, 1)


def test_the_key_is_of_pixels_size_and_mode() -> None:
    picture = Image.effect_noise((8, 6), 50).convert("RGB")
    other = picture.copy()
    assert content_key(picture) == content_key(other)
    other.putpixel((7, 5), (1, 2, 3))
    keys = {
        content_key(picture),
        content_key(other),
        content_key(picture.resize((6, 8))),
        content_key(Image.frombytes("RGB", (6, 8), picture.tobytes())),
        content_key(picture.convert("L")),
    }
    assert len(keys) == 5


def test_palettes_tell_pictures_apart() -> None:
    one, two = Image.new("P", (4, 4)), Image.new("P", (4, 4))
    one.putpalette([0, 0, 0])
    two.putpalette([255, 0, 0])
    assert content_key(one) != content_key(two)


def test_the_same_picture_twice_at_once_is_encoded_once() -> None:
    cache = FeatureCache(1000)
    begun, go_on = threading.Event(), threading.Event()
    made: list[int] = []

    def make(fails: bool) -> torch.Tensor:
        made.append(1)
        begun.set()
        assert go_on.wait(10)
        if fails:
            raise OSError("broken")
        return torch.ones(2, 2)

    for fails in (False, True):
        begun.clear()
        go_on.clear()
        made.clear()
        key = b"fails" if fails else b"works"
        with ThreadPoolExecutor(3) as threads:
            first = threads.submit(cache.get_or_make, key, partial(make, fails))
            assert begun.wait(10)
            others = [
                threads.submit(cache.get_or_make, key, lambda: make(fails=False)) for _ in range(2)
            ]
            go_on.set()
            answers = [one.result(10) for one in others]
        assert all(features.sum() == 4 for features, _ in answers)
        if fails:
            assert isinstance(first.exception(), OSError)
        else:
            assert first.result()[1] is False
            assert [cached for _, cached in answers] == [True, True]
            assert len(made) == 1
