"""The losses of keypoint detectors, in float32.

Every function returns a *sum* or takes its divisor as an argument: the divisor counts the
objects of the whole (global) batch, which a shard or a micro-batch does not see.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kpjax.ops.peaks import gather_cells

Array = jax.Array


def focal_loss(
    logits: Array, target: Array, positives: Array, clamp: float = 1e-4, weight: Array | None = None
) -> Array:
    """Penalty-reduced focal loss with alpha = 2, beta = 4 (CornerNet eq. 1; Objects as Points eq. 1).

    logits, target: (B, h, w, K) float32; a target of exactly 1 marks an object.
    positives: how many there are in the whole batch; the sum is left undivided where there are none.
    The score is sigmoid(logits) clamped to [clamp, 1 - clamp], without gradient outside
    (golden: fn_ctnet_losses, focal_clamped).
    weight: (B, h, w, K) float32 of each cell's loss (golden: loss_cornernet_lite_saccade); None: 1.
    """
    score = jnp.clip(jax.nn.sigmoid(logits.astype(jnp.float32)), clamp, 1 - clamp)
    positive = target == 1
    loss = jnp.where(
        positive,
        jnp.log(score) * (1 - score) ** 2,
        jnp.log(1 - score) * score**2 * (1 - target) ** 4,
    )
    loss = loss if weight is None else loss * weight
    return -loss.sum() / jnp.maximum(positives, 1)


def gaussian_focal_loss(score: Array, target: Array, divisor: Array, eps: float = 1e-12) -> Array:
    """mmdetection's form of the same loss: `eps` inside the logarithms instead of a clamp.

    score: (B, h, w, K) float32 in [0, 1], already a sigmoid (golden: fn_mmdet_losses).
    """
    positive = -jnp.log(score + eps) * (1 - score) ** 2 * (target == 1)
    rest = 1 - score
    # `rest` is never below 0.  The test keeps XLA from rewriting (1 - score) + eps as (1 + eps) - score,
    # which is 0 at a score of 1.
    rest = jnp.where(rest >= 0, rest, 0.0)
    negative = -jnp.log(rest + eps) * score**2 * (1 - target) ** 4
    return (positive + negative).sum() / divisor


def l1_at(maps: Array, index: Array, mask: Array, target: Array, divisor: Array) -> Array:
    """Sum of |map at the objects' cells - target| over the objects, divided by `divisor`.

    maps: (B, h, w, D).  index: (B, M) int32 flat cells.  mask: (B, M) bool.  target: (B, M, D).
    xingyizhou divides by D n + 1e-4, mmdetection by 2 max(1, positives).
    """
    found = gather_cells(maps.astype(jnp.float32), index)
    return (jnp.abs(found - target) * mask[..., None]).sum() / divisor


def points_l1_at(maps: Array, index: Array, mask: Array, target: Array, divisor: Array) -> Array:
    """As `l1_at` for J points an object, each with a mask of its own: maps (B, h, w, 2 J), target (B, M, J, 2).

    index: (B, M) int32 the objects' cells.  mask: (B, M, J) bool.
    """
    found = gather_cells(maps.astype(jnp.float32), index).reshape(target.shape)
    return (jnp.abs(found - target) * mask[..., None]).sum() / divisor


def smooth_l1(difference: Array) -> Array:
    """The smooth L1 distance of each difference d: 0.5 d^2 where |d| is below 1, else |d| - 0.5."""
    distance = jnp.abs(difference)
    return jnp.where(distance < 1, 0.5 * distance**2, distance - 0.5)


def smooth_l1_at(maps: Array, index: Array, mask: Array, target: Array, divisor: Array) -> Array:
    """As `l1_at` with the smooth L1 distance."""
    smooth = smooth_l1(gather_cells(maps.astype(jnp.float32), index) - target)
    return (smooth * mask[..., None]).sum() / divisor


def class_l1_at(maps: Array, index: Array, mask: Array, labels: Array, target: Array, divisor: Array) -> Array:
    """As `l1_at` for a head with one pair of channels a class: maps (B, h, w, 2 K), labels (B, M) int32."""
    found = gather_cells(maps.astype(jnp.float32), index)
    pairs = found.reshape(*found.shape[:2], -1, target.shape[-1])
    own = jnp.take_along_axis(pairs, labels[..., None, None], axis=2)[:, :, 0]
    return (jnp.abs(own - target) * mask[..., None]).sum() / divisor


def associative_embedding(one: Array, other: Array, mask: Array, eps: float = 1e-4) -> tuple[Array, Array]:
    """Pull and push of the objects' embeddings (CornerNet eq. 4 and 5, margin 1): sums over the images, unweighted.

    one, other: (B, M) embeddings of each object's two corners.  mask: (B, M) bool.

    Of an image with n objects, m the mean of an object's two: pull = sum((t - m)^2) / (n + eps) over its
    corners; push = the sum over all ordered pairs, an object with itself too, of
    max(0, 1 - |m_i - m_j|) - 1 / (n + eps), divided by n (n - 1) + eps.  So one object alone adds about 1
    to push, without a gradient, and none adds 0 (golden: loss_cornernet).
    eps = 0 is mmdetection's form: pairs of two different objects, divided by n (n - 1); nothing for a
    single object (golden: fn_mmdet_losses).
    """
    one, other = one.astype(jnp.float32), other.astype(jnp.float32)
    count = mask.sum(-1).astype(jnp.float32)
    mean = (one + other) / 2
    objects = count + eps if eps else jnp.maximum(count, 1.0)
    pull = (((one - mean) ** 2 + (other - mean) ** 2) * mask).sum(-1) / objects
    near = jax.nn.relu(1 - jnp.abs(mean[:, :, None] - mean[:, None, :]))
    pairs = mask[:, :, None] & mask[:, None, :]
    if eps:
        near = (near - 1 / objects[:, None, None]) / (count * (count - 1) + eps)[:, None, None]
        push = jnp.where(pairs, near, 0.0).sum((1, 2))
    else:
        pairs &= ~jnp.eye(mask.shape[1], dtype=bool)
        push = jnp.where(pairs, near, 0.0).sum((1, 2)) / jnp.maximum(count * (count - 1), 1.0)
    return pull.sum(), push.sum()


def giou_loss(found: Array, target: Array, weight: Array, divisor: Array) -> Array:
    """Sum of weight times 1 - GIoU (Rezatofighi et al. 2019, algorithm 1), divided by `divisor`.

    found, target: (..., 4) boxes x1 y1 x2 y2, corners inclusive: a side has x2 - x1 + 1 pixels (golden:
    fn_ttfnet_losses).  weight: (...), boxes of 0 or less do not count.
    """

    def area(low: Array, high: Array) -> Array:
        sides = jnp.maximum(high - low + 1, 0)
        return sides[..., 0] * sides[..., 1]

    low, high = (found[..., :2], target[..., :2]), (found[..., 2:], target[..., 2:])
    overlap = area(jnp.maximum(*low), jnp.minimum(*high))
    union = area(low[0], high[0]) + area(low[1], high[1]) - overlap
    hull = area(jnp.minimum(*low), jnp.maximum(*high))
    counts = weight > 0
    union, hull = jnp.where(counts, union, 1.0), jnp.where(counts, hull, 1.0)
    distance = 1 - overlap / union + (hull - union) / hull
    return jnp.where(counts, weight * distance, 0.0).sum() / divisor
