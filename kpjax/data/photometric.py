"""Colours changed in HSV, on the device: mmdetection's augmentation (first used by SSD, arXiv 1512.02325), and YOLO's.

mmdetection's (its CenterNet and CornerNet): brightness, contrast, saturation, hue and the order of the channels, each
changed with probability 1/2.  Saturation and hue are those of OpenCV's HSV for float pixels: values are not clipped,
saturation may pass 1.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array

BRIGHTNESS, CONTRAST, SATURATION, HUE = 32.0, (0.5, 1.5), (0.5, 1.5), 18.0
_EPSILON = 1.1920929e-07  # what OpenCV adds to its divisors, FLT_EPSILON


class Distortion(NamedTuple):
    """One image's changes, float32 scalars.  brightness: added, grey levels.  contrast_first, contrast_last: factors
    before and after saturation and hue, one of them 1.  saturation: factor.  hue: added, degrees.
    channels: (3,) int32, output channel c shows input channel channels[c].
    """

    brightness: Array
    contrast_first: Array
    contrast_last: Array
    saturation: Array
    hue: Array
    channels: Array


def draw_distortion(key: Array) -> Distortion:
    """The changes of one image: each happens with probability 1/2, contrast first or last by a coin."""
    coins_key, *keys = jax.random.split(key, 6)
    coins = jax.random.bernoulli(coins_key, shape=(6,))
    contrast = jnp.where(coins[1], jax.random.uniform(keys[1], minval=CONTRAST[0], maxval=CONTRAST[1]), 1.0)
    return Distortion(
        brightness=jnp.where(coins[0], jax.random.uniform(keys[0], minval=-BRIGHTNESS, maxval=BRIGHTNESS), 0.0),
        contrast_first=jnp.where(coins[5], contrast, 1.0),
        contrast_last=jnp.where(coins[5], 1.0, contrast),
        saturation=jnp.where(coins[2], jax.random.uniform(keys[2], minval=SATURATION[0], maxval=SATURATION[1]), 1.0),
        hue=jnp.where(coins[3], jax.random.uniform(keys[3], minval=-HUE, maxval=HUE), 0.0),
        channels=jnp.where(coins[4], jax.random.permutation(keys[4], 3), jnp.arange(3)),
    )


def distort(image: Array, change: Distortion) -> Array:
    """Apply the changes to RGB pixels 0..255, (H, W, 3), any dtype.  Returns float32, not clipped."""
    image = (image.astype(jnp.float32) + change.brightness) * change.contrast_first
    hue, value, spread = _hue(image)
    hue = hue + change.hue
    # Saturation times value, without the division and multiplication between; OpenCV divides by |value|.
    chroma = spread * change.saturation * jnp.sign(value)
    image = (value[..., None] - chroma[..., None] * _fall(hue)) * change.contrast_last
    return image[..., change.channels]


def draw_hsv(key: Array, hue: float, saturation: float, value: float) -> tuple[Array, Array, Array]:
    """What `change_hsv` takes beside the image: a turn within +-hue of the circle, factors 1 +- saturation, value."""
    turn, color, light = jax.random.uniform(key, (3,), minval=-1.0, maxval=1.0)
    return 360.0 * hue * turn, 1 + saturation * color, 1 + value * light


def change_hsv(image: Array, turn: Array, saturation: Array, value: Array) -> Array:
    """YOLO's jitter of RGB pixels 0..255, (H, W, 3) float32: hue turned by degrees, saturation and value multiplied.

    Saturation stays at most 1 and value at most 255, so pixels stay between 0 and 255.
    """
    hue, largest, spread = _hue(image)
    chroma = jnp.minimum(spread * saturation, largest)
    factor = jnp.minimum(value, 255.0 / jnp.maximum(largest, _EPSILON))
    return (largest[..., None] - chroma[..., None] * _fall(hue + turn)) * factor[..., None]


def _hue(image: Array) -> tuple[Array, Array, Array]:
    """Hue in degrees, value (the largest channel) and the spread of channels, (H, W) each, as OpenCV's."""
    red, green, blue = image[..., 0], image[..., 1], image[..., 2]
    value = image.max(-1)
    spread = value - image.min(-1)
    turn = 60.0 / (spread + _EPSILON)
    hue = jnp.where(value == green, (blue - red) * turn + 120.0, (red - green) * turn + 240.0)
    return jnp.where(value == red, (green - blue) * turn, hue), value, spread


def _fall(hue: Array) -> Array:
    """How far below the value each channel lies, in parts of the chroma: trapezia of the hue, shifted by a third of
    the circle each.  (H, W) degrees -> (H, W, 3)."""
    sextants = (jnp.asarray([5.0, 3.0, 1.0]) + hue[..., None] / 60.0) % 6.0
    return jnp.clip(jnp.minimum(sextants, 4.0 - sextants), 0.0, 1.0)
