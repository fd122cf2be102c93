"""CornerNet's random crop: a window of pixels around a point of the image, resized to the network's input.

Unlike CenterNet's crop (`augment.py`) the window's size does not depend on the image's: it is the input's own,
times a scale.  Pixels are (x, y); the image stands in the top left corner of its canvas.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Window:
    """One image's crop.  center: (2,) float32 x y, whole numbers.  sides: (2,) float32 w h, whole numbers.  flip: bool.

    The centre's pixel becomes the window's pixel sides // 2.
    """

    center: Array
    sides: Array
    flip: Array

    @property
    def start(self) -> Array:
        """The image's pixel that becomes the window's first, (2,) x y; it may lie outside the image."""
        return self.center - jnp.floor(self.sides / 2)


jax.tree_util.register_dataclass(Window, data_fields=["center", "sides", "flip"], meta_fields=[])


def visible(size: Array, window: Window) -> Array:
    """The image's extent (2,) int32 h w, as far as the window shows it.

    A window of an odd side shows one column (row) less than it has, as in the original (golden: targets_cornernet).
    """
    end = window.start + 2 * jnp.floor(window.sides / 2)
    return jnp.minimum(size, end[::-1].astype(jnp.int32))


def window_positions(window: Window, output: tuple[int, int]) -> tuple[Array, Array]:
    """Where each output row and column is read: ys (H,), xs (W,) float32 pixel indices of the canvas.

    OpenCV's bilinear resize: pixels have their centres at halves, and the window's edge is repeated.
    """

    def axis(start: Array, side: Array, length: int) -> Array:
        inside = (jnp.arange(length, dtype=jnp.float32) + 0.5) * (side / length) - 0.5
        return start + jnp.clip(inside, 0.0, side - 1)

    xs = axis(window.start[0], window.sides[0], output[1])
    ys = axis(window.start[1], window.sides[1], output[0])
    return ys, jnp.where(window.flip, xs[::-1], xs)


def window_boxes(boxes: Array, window: Window, output: tuple[int, int]) -> Array:
    """Boxes (M, 4) xyxy from canvas to input pixels; not clipped.  output: (H, W).  Mirrored, x becomes W - 1 - x."""
    extent = jnp.asarray([output[1], output[0]], jnp.float32)
    boxes = (boxes - jnp.tile(window.start, 2)) * jnp.tile(extent / window.sides, 2)
    last = extent[0] - 1
    mirrored = jnp.stack([last - boxes[:, 2], boxes[:, 1], last - boxes[:, 0], boxes[:, 3]], -1)
    return jnp.where(window.flip, mirrored, boxes)
