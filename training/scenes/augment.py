"""Drawings that look less drawn: bent, shaded, textured, in other colours, sharper or softer."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

from training.stickers.atlas import Atlas

PLAIN = 0.15
"""Share of the pictures that stay as they are."""


def varied(atlas: Atlas, number: int) -> Atlas:
    """The atlas with every picture varied in a way of its own; the same for the same number."""
    rng = np.random.default_rng((number, 11))
    pictures = {
        (vendor, name): vary(atlas.picture(vendor, name), rng)
        for vendor in atlas.vendors
        for name in atlas.names
    }
    return Atlas(atlas.names, atlas.vendors, pictures)


def vary(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A picture of the same thing, RGBA of the same size."""
    if rng.random() < PLAIN:
        return picture
    if rng.random() < 0.7:
        picture = _bent(picture, rng)
    values = np.asarray(picture).astype(np.float32)
    colours = _recoloured(values[..., :3] / 255, rng)
    if rng.random() < 0.6:
        # As if it were solid: darker towards its rim.
        depth = picture.getchannel("A").filter(ImageFilter.GaussianBlur(rng.uniform(3, 9)))
        rim = 1 - np.asarray(depth).astype(np.float32)[..., None] / 255
        colours = colours * (1 - rng.uniform(0.1, 0.6) * rim)
    colours = _textured(colours, rng)
    shaped = np.concatenate([colours.clip(0, 1) * 255, values[..., 3:]], axis=-1)
    return _focused(Image.fromarray(shaped.round().astype(np.uint8), "RGBA"), rng)


def _bent(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    wide, high = 1 / rng.uniform(0.75, 1.0, 2)
    across, down = rng.uniform(-0.2, 0.2), rng.uniform(-0.12, 0.12)
    centre = picture.width / 2
    affine = (
        wide, across, centre * (1 - wide - across),
        down, high, centre * (1 - down - high),
    )  # fmt: skip
    return picture.transform(picture.size, Image.Transform.AFFINE, affine, Image.Resampling.BICUBIC)


def _recoloured(colours: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    grey = colours.mean(axis=2, keepdims=True)
    colours = (grey + (colours - grey) * rng.uniform(0.4, 1.15)).clip(0, 1)
    colours = colours ** rng.uniform(0.7, 1.5)
    tint = rng.uniform(0.85, 1.1, 3) * rng.uniform(0.75, 1.1)
    result: np.ndarray = colours * tint + rng.uniform(-0.05, 0.05)
    return result


def _textured(colours: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    side = len(colours)
    rows, columns = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    angle = rng.uniform(0, 2 * np.pi)
    light = 1 + rng.uniform(0, 0.45) * (np.cos(angle) * columns + np.sin(angle) * rows)
    grain = 1 + rng.uniform(0, 0.18) * noise(side, rng.uniform(0.4, 1.3), rng)
    colours = colours * (light * grain)[..., None]
    if rng.random() < 0.5:
        spots = [noise(side, rng.uniform(0.8, 1.8), rng) for _ in range(3)]
        colours = colours + rng.uniform(0, 0.07) * np.stack(spots, axis=-1)
    return colours


def noise(side: int, fall: float, rng: np.random.Generator) -> np.ndarray:
    """Noise [side, side] of mean 0 and deviation 1 whose amplitude falls with frequency to the
    power `fall`, as in photographs it does with about 1."""
    steps = np.fft.fftfreq(side)
    frequency = np.hypot(steps[:, None], steps[None])
    frequency[0, 0] = 1
    phases = rng.normal(size=(side, side)) + 1j * rng.normal(size=(side, side))
    values = np.fft.ifft2(phases / frequency**fall).real
    result: np.ndarray = (values - values.mean()) / values.std()
    return result


def _focused(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    chance = rng.random()
    if chance >= 0.5:
        return picture
    opaque = picture.convert("RGB")
    if chance < 0.3:
        opaque = opaque.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.0)))
    else:
        opaque = opaque.filter(ImageFilter.UnsharpMask(1, int(rng.uniform(50, 150))))
    opaque.putalpha(picture.getchannel("A"))
    return opaque
