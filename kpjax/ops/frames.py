"""Where the image lies in the network's input, for maps of plain and mirrored views."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from kpjax.objects import Placed
from kpjax.ops.corners import Points

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Frame:
    """Where the image lies in the input, for each of N maps.

    ratio: (x, y) input pixels a cell.  left, top: (N, 1) of the image in the map's own, perhaps mirrored, input.
    width, height: (N, 1) of the image.  mirrored: (N, 1) bool.
    """

    ratio: tuple[float, float]
    left: Array
    top: Array
    width: Array
    height: Array
    mirrored: Array

    def to_image(self, points: Points) -> Points:
        """From cells to pixels of the image, still mirrored where the map is."""
        return dataclasses.replace(
            points,
            xs=points.xs * self.ratio[0] - self.left,
            ys=points.ys * self.ratio[1] - self.top,
        )

    def xy_to_image(self, xy: Array) -> Array:
        """Points (N, P, 2) x y from cells to pixels of the plain image."""
        xs, ys = xy[..., 0] * self.ratio[0] - self.left, xy[..., 1] * self.ratio[1] - self.top
        return jnp.stack([self.unmirror(xs), ys], axis=-1)

    def unmirror(self, xs: Array) -> Array:
        """The x of a point in the plain image."""
        return jnp.where(self.mirrored, self.width - xs, xs)


def frame_of(shape: tuple[int, ...], placed: Placed | None, stride: int = 4) -> Frame:
    """The frame of score maps of `shape` (B, V, h, w, K), V views of an image, the second one mirrored.

    placed: None: inputs of stride h - 1 and stride w - 1 pixels, as the originals' are, that the image fills.
    """
    batch, views, height, width = shape[:4]
    full = placed.size if placed else (stride * height - 1, stride * width - 1)
    windows = placed.window if placed else None
    if windows is None:
        windows = jnp.broadcast_to(jnp.asarray([0, 0, *full], jnp.float32), (batch, 4))
    top, left, bottom, right = (
        jnp.broadcast_to(windows[:, None, i, None], (batch, views, 1)).astype(jnp.float32) for i in range(4)
    )
    mirrored = jnp.broadcast_to((jnp.arange(views) == 1)[None, :, None], (batch, views, 1))
    return Frame(
        ratio=(full[1] / width, full[0] / height),
        left=jnp.where(mirrored, full[1] - right, left).reshape(-1, 1),
        top=top.reshape(-1, 1),
        width=(right - left).reshape(-1, 1),
        height=(bottom - top).reshape(-1, 1),
        mirrored=mirrored.reshape(-1, 1),
    )
