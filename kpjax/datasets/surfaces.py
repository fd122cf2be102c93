"""Textured surfaces for drawn data sets, and painting them into an image with soft edges."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

SUB = 4  # subpixels a pixel side: outlines are rasterised this fine, boxes are exact to 1 / SUB pixel
MIN_CONTRAST = 80.0  # distance, in RGB grey levels, of an object's mean colour from what lies under it


def to_pixels(mask: np.ndarray, x0: int, y0: int) -> tuple[np.ndarray, int, int]:
    """Subpixel mask at (x0, y0) -> (coverage (h, w) float32 in 0..1, left, top) in whole pixels."""
    (left, dx), (top, dy) = divmod(x0, SUB), divmod(y0, SUB)
    h, w = mask.shape
    padded = np.pad(mask, ((dy, -(dy + h) % SUB), (dx, -(dx + w) % SUB)))
    blocks = padded.reshape(padded.shape[0] // SUB, SUB, padded.shape[1] // SUB, SUB)
    return blocks.mean((1, 3), dtype=np.float32), left, top


def paint(rng: np.random.Generator, under: np.ndarray, coverage: np.ndarray) -> None:
    """Blend a textured surface that contrasts with what it covers into `under` (h, w, 3), in place, by `coverage`."""
    h, w = coverage.shape
    colour = contrasting_colour(rng, [mean_under(under, coverage)])
    blend(under, coverage, surface(rng, h, w, colour, strength=30.0))


def blend(under: np.ndarray, coverage: np.ndarray, over: np.ndarray) -> None:
    """Put `over` (h, w, 3) into `under`, in place, where and as far as `coverage` (h, w) in 0..1 says."""
    under += coverage[..., None] * (over - under)


def mean_under(under: np.ndarray, coverage: np.ndarray) -> np.ndarray:
    """The mean colour (3,) of what `coverage` covers."""
    return (under * coverage[..., None]).sum((0, 1)) / coverage.sum()


def contrasting_colour(rng: np.random.Generator, others: Sequence[np.ndarray]) -> np.ndarray:
    """A random RGB colour (3,) that lies at least `MIN_CONTRAST` from each of the others."""
    colour = random_colour(rng)
    while any(np.linalg.norm(colour - other) < MIN_CONTRAST for other in others):
        colour = random_colour(rng)
    return colour


def random_colour(rng: np.random.Generator) -> np.ndarray:
    """An RGB colour (3,) in grey levels, neither black nor white."""
    return rng.uniform(15.0, 240.0, 3)


def surface(rng: np.random.Generator, h: int, w: int, colour: np.ndarray, strength: float) -> np.ndarray:
    """A textured surface (h, w, 3) float32 around a colour: two patterns of any kinds, each with a tint."""
    plane = np.broadcast_to(colour.astype(np.float32), (h, w, 3)).copy()
    for _ in range(2):
        pattern = _PATTERNS[int(rng.integers(len(_PATTERNS)))](rng, h, w)
        tint = rng.uniform(-1.0, 1.0, 3).astype(np.float32) + rng.choice([-0.6, 0.6])
        plane += pattern.astype(np.float32)[..., None] * (strength * rng.uniform(0.2, 0.7) * tint).astype(np.float32)
    return plane


def _slope(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    """Pixels' distances along a random direction, (h, w)."""
    angle = rng.uniform(0, 2 * np.pi)
    return np.arange(h)[:, None] * math.sin(angle) + np.arange(w) * math.cos(angle)


def _gradient(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    along = _slope(rng, h, w)
    return 2 * (along - along.min()) / (np.ptp(along) + 1e-6) - 1


def _stripes(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    waves = np.sin(_slope(rng, h, w) * (2 * np.pi / rng.uniform(4.0, 16.0)) + rng.uniform(0, 2 * np.pi))
    return np.clip(waves * rng.uniform(1.0, 4.0), -1, 1)


def _checks(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    step = int(rng.integers(3, 10))
    return ((np.arange(h)[:, None] // step + np.arange(w) // step) % 2) * 2.0 - 1.0


def _blotches(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    step = rng.uniform(4.0, 20.0)
    coarse = rng.uniform(-1, 1, (int(h / step) + 2, int(w / step) + 2)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((w, h), Image.Resampling.BICUBIC))


def _speckle(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    return rng.uniform(-1, 1, (h, w))


_PATTERNS = (_gradient, _stripes, _checks, _blotches, _speckle)
