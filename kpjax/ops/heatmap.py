"""Heatmap targets: how far a keypoint's Gaussian reaches, and drawing it.

CornerNet, section 3.2: a keypoint moved by up to r still yields a box of IoU >= o with
the true one; the Gaussian of such a keypoint has sigma = (2 r + 1) / 6.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array

IGNORED = 0.9999  # a target that is no object, and where the penalty of the focal loss is next to nothing


def gaussian_radius(height: Array, width: Array, overlap: float, formula: str = "fixed") -> Array:
    """The real-valued radius r for boxes of the given sides, in cells of the map.

    height, width: float32, any shape, positive.  overlap: the least IoU o, in (0, 1).
    formula: "fixed" solves the three quadratic conditions; "legacy" is what xingyizhou's
        CenterNet and the triplet paper use, CornerNet's first form, which leaves out the
        division by 2a (golden: fn_ctnet_gaussian, gaussian_original).
    Returns float32 of the same shape.  The originals draw with int(r): `radius_in_cells`.

    The three cases are: both corners inside the true box, both outside, one each.  Every root
    is written without a difference of near-equal numbers, so that float32 gives the integer
    part that the originals get in float64.
    """
    h = jnp.asarray(height, jnp.float32)
    w = jnp.asarray(width, jnp.float32)
    o = overlap
    total, area, difference = h + w, h * w, h - w
    # Discriminants: b^2 - 4ac with (h + w)^2 = (h - w)^2 + 4 h w put in.
    root1 = jnp.sqrt(difference**2 + area * (8 * o / (1 + o)))
    root2 = 2 * jnp.sqrt(difference**2 + area * (4 * o))
    root3 = 2 * jnp.sqrt(total**2 * o**2 + area * (4 * o * (1 - o)))
    if formula == "legacy":
        # (b3 + root3) / 2 with b3 = -2 o (h + w); the conjugate keeps its digits.
        third = 8 * o * (1 - o) * area / (2 * o * total + root3)
        return jnp.minimum(jnp.minimum((total + root1) / 2, (2 * total + root2) / 2), third)
    if formula == "fixed":
        first = 2 * area * ((1 - o) / (1 + o)) / (total + root1)
        second = 2 * area * (1 - o) / (2 * total + root2)
        third = 2 * area * (1 - o) / (2 * o * total + root3)
        return jnp.minimum(jnp.minimum(first, second), third)
    raise ValueError(f"radius formula {formula!r}; choose 'legacy' or 'fixed'")


def radius_in_cells(radius: Array) -> Array:
    """int(r) of a radius of `gaussian_radius`, at least 0, int32.

    Boxes with sides in whole cells often have a whole radius, such as 7 for 20x35 at an overlap of 0.7.  A GPU's
    division and square root are off by some units in the last place, which must not make a 6 of it: what is less than
    1e-6 of itself below a whole number counts as this number.
    """
    return jnp.maximum((radius * (1 + 1e-6)).astype(jnp.int32), 0)


def gaussian_profile(centers: Array, radii: Array, length: int, sigma_divisor: float = 6.0) -> Array:
    """One axis of M Gaussians: exp(-(x - c)^2 / (2 sigma^2)) within |x - c| <= r, else 0.

    centers, radii: (M,) int32 cells.  sigma = (2 r + 1) / sigma_divisor.  Returns (M, length) float32.
    """
    distance = jnp.arange(length, dtype=jnp.int32)[None, :] - centers[:, None]
    sigma = (2 * radii + 1).astype(jnp.float32)[:, None] / sigma_divisor
    value = jnp.exp(-(distance.astype(jnp.float32) ** 2) / (2 * sigma**2))
    return jnp.where(jnp.abs(distance) <= radii[:, None], value, 0.0)


def draw_gaussians(
    centers: Array,
    radii: Array,
    labels: Array,
    valid: Array,
    shape: tuple[int, int],
    num_classes: int,
    sigma_divisor: float = 6.0,
) -> Array:
    """Draw M keypoints into a map of every class, overlapping ones by their maximum.

    centers: (M, 2) int32 x, y cells.  radii, labels: (M,) int32.  valid: (M,) bool.
    shape: (h, w).  Returns (h, w, K) float32 in [0, 1], exactly 1 at a centre.
    """
    height, width = shape
    columns = gaussian_profile(centers[:, 0], radii, width, sigma_divisor)
    rows = gaussian_profile(centers[:, 1], radii, height, sigma_divisor) * valid[:, None]
    return draw_profiles(columns, rows, labels, num_classes)


def draw_profiles(columns: Array, rows: Array, labels: Array, num_classes: int) -> Array:
    """Draw M keypoints, each the product of a profile along x and one along y, as `draw_gaussians` does.

    columns: (M, w), rows: (M, h) float32.  labels: (M,) int32; one that is no class is not drawn.
    Returns (h, w, K) float32.
    """
    height, width = rows.shape[1], columns.shape[1]
    drawn = (rows[:, :, None] * columns[:, None, :]).reshape(-1, height * width)
    # A scatter of whole maps: M updates instead of M x K comparisons a cell.  Maximum does not
    # depend on the order of the updates, so the result is the same on every device.
    heat = jnp.zeros((num_classes, height * width), jnp.float32).at[labels].max(drawn, mode="drop")
    return heat.reshape(num_classes, height, width).transpose(1, 2, 0)


def draw_points(cells: Array, radii: Array, valid: Array, shape: tuple[int, int], sigma_divisor: float = 6.0) -> Array:
    """Draw J kinds of points of M objects, a channel each, overlapping ones by their maximum.

    cells: (M, J, 2) int32 x, y.  radii: (M,) int32, one an object.  valid: (M, J) bool.  shape: (h, w).
    Returns (h, w, J) float32 in [0, 1], exactly 1 at a point.
    """
    count = cells.shape[1]

    def axis(which: int, length: int) -> Array:
        flat = gaussian_profile(cells[..., which].reshape(-1), jnp.repeat(radii, count), length, sigma_divisor)
        return flat.reshape(-1, count, length)

    columns, rows = axis(0, shape[1]), axis(1, shape[0]) * valid[..., None]
    # Products and maximum are one loop over the map when compiled: the M maps are never in memory together.
    heat = (rows[:, :, :, None] * columns[:, :, None, :]).max(0, initial=0.0)
    return heat.transpose(1, 2, 0)


def draw_in_turn(
    cells: Array,
    radii: Array,
    classes: Array,
    ignored: Array,
    rectangles: Array,
    shape: tuple[int, int],
    sigma_divisor: float = 6.0,
) -> Array:
    """Draw M objects one after the other, regions to ignore among them, into a map of every class.

    An object's Gaussian is joined by the maximum.  An ignored one writes `IGNORED` into all cells of its rectangle,
    over what is there; later ones draw over it.  So a centre that an ignored region covers is a centre only where its
    object comes later, and no cell of the map counts as background or object there.

    cells: (M, 2) int32 x, y.  radii: (M,) int32; below 0: without a Gaussian.  classes: (M, K) bool, the channels that
    each is drawn in.  ignored: (M,) bool.  rectangles: (M, 4) int32 x1 y1 x2 y2, cells, both ends included.
    shape: (h, w).  Returns (h, w, K) float32, exactly 1 at an object's centre.
    """
    height, width = shape
    x, y, turn = jnp.arange(width), jnp.arange(height), jnp.arange(cells.shape[0])
    columns = gaussian_profile(cells[:, 0], radii, width, sigma_divisor)[:, None, :]
    rows = gaussian_profile(cells[:, 1], radii, height, sigma_divisor)[:, :, None]
    covers = ((x >= rectangles[:, :1]) & (x <= rectangles[:, 2:3]))[:, None, :]
    covers &= ((y >= rectangles[:, 1:2]) & (y <= rectangles[:, 3:]))[:, :, None] & ignored[:, None, None]
    turns = turn[:, None, None]

    def draw(own: Array) -> Array:
        """One class's map; own: (M,) bool."""
        own = own[:, None, None]
        last = jnp.where(covers & own, turns, -1).max(0, initial=-1)
        drawn = jnp.where(own & (turns > last), rows * columns, 0.0).max(0, initial=0.0)
        return jnp.maximum(drawn, jnp.where(last >= 0, jnp.float32(IGNORED), 0.0))

    return jnp.stack([draw(classes[:, k]) for k in range(classes.shape[1])], axis=-1)
