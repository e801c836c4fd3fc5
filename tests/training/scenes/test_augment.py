"""Varied drawings: of the same shape, each in its own way, the same for the same number."""

from __future__ import annotations

import numpy as np
import pytest

from training.scenes.augment import noise, varied, vary
from training.stickers.atlas import Atlas


@pytest.fixture(scope="module")
def atlas() -> Atlas:
    whole = Atlas.load()
    names, vendors = whole.names[:20], whole.vendors[:2]
    pictures = {key: value for key, value in whole.pictures.items() if key[1] in names}
    return Atlas(names, vendors, pictures)


def test_a_number_gives_the_same_pictures_and_another_one_others(atlas: Atlas) -> None:
    one, same, other = varied(atlas, 3), varied(atlas, 3), varied(atlas, 4)
    keys = [(vendor, name) for vendor in atlas.vendors for name in atlas.names]
    assert all(one.pictures[key].tobytes() == same.pictures[key].tobytes() for key in keys)
    changed = [one.pictures[key].tobytes() != other.pictures[key].tobytes() for key in keys]
    assert np.mean(changed) > 0.9
    plain = [one.pictures[key].tobytes() == atlas.pictures[key].tobytes() for key in keys]
    assert 0 < np.mean(plain) < 0.4
    assert all(one.pictures[key].size == atlas.pictures[key].size for key in keys)
    assert all(one.pictures[key].mode == "RGBA" for key in keys)


def test_a_varied_drawing_still_shows_the_thing(atlas: Atlas) -> None:
    """What is there stays about where it was, and light stays light."""
    rng = np.random.default_rng(0)
    for name in atlas.names:
        picture = atlas.picture(atlas.vendors[0], name)
        before, after = (np.asarray(p).astype(float) for p in (picture, vary(picture, rng)))
        both = (before[..., 3] > 128) & (after[..., 3] > 128)
        assert both.sum() > 0.3 * (before[..., 3] > 128).sum()
        greys = [values[..., :3].mean(axis=2)[both] for values in (before, after)]
        if greys[0].std() > 40:
            assert np.corrcoef(greys[0], greys[1])[0, 1] > 0.2


def test_noise_is_smoother_the_faster_it_falls() -> None:
    rough, smooth = (noise(64, fall, np.random.default_rng(0)) for fall in (0.0, 2.0))
    for values in (rough, smooth):
        assert values.mean() == pytest.approx(0, abs=1e-9)
        assert values.std() == pytest.approx(1)
    assert np.abs(np.diff(smooth)).mean() < 0.5 * np.abs(np.diff(rough)).mean()
