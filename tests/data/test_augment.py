"""Augmentation on the device against OpenCV and against the originals' sequence of operations, in NumPy."""

from __future__ import annotations

import functools
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kpjax.config import AugmentConfig
from kpjax.data.augment import augment, cut_boxes, jitter_color
from kpjax.images.geometry import draw_crop, scaled_crop, shrink_border, square_crop
from kpjax.images.preprocess import COCO_BGR, Preprocess
from kpjax.images.resample import _products, resample
from tests.records import objects_of

PLAIN = Preprocess(order="RGB", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
QUIET: dict[str, Any] = {"color": 0.0, "lighting": 0.0}


def keys(n: int, seed: int = 0) -> jax.Array:
    return jax.random.split(jax.random.key(seed), n)


# --- geometry ------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=5)
def warp(canvas: Any, size: Any, center: Any, side: Any, flip: Any, output: tuple[int, int], border: Any) -> Any:
    crop = square_crop(center, side, flip, size, output)
    return resample(canvas, size, crop.ys, crop.xs, border)


@pytest.mark.skipif(int(cv2.__version__.split(".")[0]) < 5, reason="OpenCV 4 rounds positions to 1/32 of a pixel")
def test_resample_is_opencvs_warp() -> None:
    """Within one grey level of cv2.warpAffine for random centres, sides and flips."""
    rng = np.random.default_rng(0)
    height, width, output = 70, 90, (48, 64)
    # What lies on the canvas outside the image must not be seen: 255 there.
    canvas = np.full((100, 100, 3), 255, np.uint8)
    image = cv2.GaussianBlur(rng.integers(0, 256, (height, width, 3), np.uint8), (3, 3), 0)
    canvas[:height, :width] = image
    border = (10.0, 200.0, 90.0)
    worst = 0.0
    for n in range(24):
        side = rng.uniform(30, 160)
        center = rng.uniform((0, 0), (width, height)).astype(np.float32)
        flip = bool(n % 2)
        scale = output[1] / side
        matrix = np.array(
            [[scale, 0, output[1] / 2 - scale * center[0]], [0, scale, output[0] / 2 - scale * center[1]]], np.float64
        )
        source = cv2.flip(image, 1) if flip else image
        expected = cv2.warpAffine(
            source, matrix, output[::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=border
        )
        size = np.array([height, width], np.int32)
        found = np.asarray(warp(canvas, size, center, np.float32(side), flip, output, np.array(border, np.float32)))
        worst = max(worst, float(np.abs(np.rint(found) - expected).max()))
    assert worst <= 1


@pytest.mark.parametrize("sample", [resample, _products])  # a CPU's form, and that of other devices
def test_samples_at_borders_and_far_away(sample: Any) -> None:
    """Against a sum over the four neighbours in NumPy; beyond the image, pixels have the border's colour."""
    rng = np.random.default_rng(1)
    canvas = rng.integers(0, 256, (40, 40, 3), np.uint8)
    border = np.array([10.0, 200.0, 90.0], np.float32)
    run = jax.jit(sample)
    for size in ((40, 40), (17, 33), (1, 1)):
        ys, xs = (rng.uniform(-5, 45, n).astype(np.float32) for n in (21, 30))
        ys[:4], xs[:2] = (-1e7, -1.0, 1e7, size[0] - 1), (-0.5, size[1] - 0.5)
        wanted = np.zeros((21, 30, 3))
        for dy in (0, 1):
            for dx in (0, 1):
                y, x = np.floor(ys).astype(int) + dy, np.floor(xs).astype(int) + dx
                weight = np.outer(*(np.abs(1 - d - (p - np.floor(p))) for d, p in ((dy, ys), (dx, xs))))
                inside = np.outer((y >= 0) & (y < size[0]), (x >= 0) & (x < size[1]))
                pixels = canvas[np.clip(y, 0, 39)][:, np.clip(x, 0, 39)]
                wanted += weight[..., None] * np.where(inside[..., None], pixels, border)
        np.testing.assert_allclose(run(canvas, np.array(size, np.int32), ys, xs, border), wanted, atol=2e-3)


def test_boxes_follow_the_pixels() -> None:
    """A white rectangle, augmented: its bright pixels are where its box says, within a pixel."""
    height, width, output = 90, 120, (64, 64)
    corners = (30, 25, 85, 60)  # first and last white column and row
    canvas = jnp.zeros((128, 128, 3), jnp.uint8)
    canvas = canvas.at[corners[1] : corners[3] + 1, corners[0] : corners[2] + 1].set(255)
    seen = flipped = cut = 0
    for kind, kwargs in (("crop", {"scales": (0.6, 1.0, 1.3)}), ("shift", {"scale": 0.3}), ("none", {})):
        config = AugmentConfig(kind=kind, height=output[0], width=output[1], **QUIET, **kwargs)

        @jax.jit
        def run(keys: Any, config: AugmentConfig = config) -> Any:
            objects = objects_of(jnp.asarray([corners], jnp.float32), jnp.zeros(1, jnp.int32))
            size = jnp.asarray([height, width], jnp.int32)
            images, moved, _ = jax.vmap(lambda k: augment(k, canvas, size, objects, config, PLAIN))(keys)
            return images, moved.boxes

        for image, boxes in zip(*map(np.asarray, run(keys(24))), strict=True):
            assert image.shape == (*output, 3)
            x1, y1, x2, y2 = boxes[0]
            # coverage of the white rectangle's middle row and column, as far as it is inside
            columns, rows = (np.flatnonzero(image[..., 0].max(axis) > 0.5) for axis in (0, 1))
            if not len(columns) or not len(rows):
                assert x2 < 1 or y2 < 1 or x1 > output[1] - 2 or y1 > output[0] - 2
                continue
            limits = np.clip([x1, y1, x2, y2], 0, [output[1] - 1, output[0] - 1] * 2)
            np.testing.assert_allclose([columns[0], rows[0], columns[-1], rows[-1]], limits, atol=1.01)
            seen += 1
            cut += limits.tolist() != [x1, y1, x2, y2]
            # the rectangle is left of the middle: a mirrored whole image has it on the right
            flipped += kind == "none" and (x1 + x2) / 2 > output[1] / 2
    assert seen > 50 and cut > 3 and 4 < flipped < 20


def test_whole_image_without_randomness_is_a_plain_resize_of_its_square() -> None:
    config = AugmentConfig(kind="none", flip=0.0, height=200, width=200)
    geometry = draw_crop(jax.random.key(0), jnp.asarray([60, 100]), config).geometry
    assert geometry.source.tolist() == [50, 30] and not bool(geometry.mirrored) and not bool(geometry.changed)
    moved = geometry.move(objects_of(jnp.asarray([[0.0, 0.0, 100.0, 60.0]]), jnp.zeros(1, jnp.int32)))
    np.testing.assert_allclose(moved.boxes, [[0, 40, 200, 160]], atol=1e-4)


def test_border_shrinks_as_the_originals() -> None:
    def original(border: int, size: int) -> int:
        i = 1
        while size - border // i <= border // i:
            i *= 2
        return border // i

    shrink = jax.jit(jax.vmap(lambda size: shrink_border(128, size)))
    sizes = np.arange(1, 700)
    np.testing.assert_array_equal(shrink(sizes.astype(np.float32)), [original(128, int(s)) for s in sizes])


@pytest.mark.parametrize("size", [(480, 640), (100, 300)])
def test_draws_of_the_crop(size: tuple[int, int]) -> None:
    """Flip rate, scales, and whole-number centres in [border, extent - border), before they are mirrored."""
    config = AugmentConfig(kind="crop")
    n = 4000
    draws = jax.jit(jax.vmap(lambda key: draw_crop(key, jnp.asarray(size, jnp.int32), config).geometry))(keys(n))
    flip, side = np.asarray(draws.mirrored), config.width / np.abs(np.asarray(draws.scale)[:, 0])
    assert abs(flip.mean() - 0.5) < 0.04
    used = np.round(side / max(size), 3)
    values, counts = np.unique(used, return_counts=True)
    np.testing.assert_allclose(values, config.scales, atol=1e-3)
    assert np.abs(counts / n - 1 / 8).max() < 0.025
    plain = np.asarray(draws.source)
    np.testing.assert_array_equal(plain, np.round(plain))
    for axis, extent in ((0, size[1]), (1, size[0])):
        border = 128 if extent > 256 else 64 if extent > 128 else 32
        low, high = plain[:, axis].min(), plain[:, axis].max()
        assert low >= border and high <= extent - border - 1
        if extent - 2 * border < 300:  # few enough values that the ends are met
            assert low == border and high == extent - border - 1
        middle = (extent - 1) / 2
        assert abs(plain[:, axis].mean() - middle) < 0.03 * extent
    # the draws do not hang together
    assert abs(np.corrcoef(flip, used)[0, 1]) < 0.06 and abs(np.corrcoef(plain[:, 0], plain[:, 1])[0, 1]) < 0.06


def test_draws_of_the_shift() -> None:
    config = AugmentConfig(kind="shift", shift=0.1, scale=0.4, flip=0.0)
    size = (480, 640)
    draws = jax.jit(jax.vmap(lambda key: draw_crop(key, jnp.asarray(size, jnp.int32), config).geometry))(keys(4000))
    move = (np.asarray(draws.source) - [320, 240]) / 640
    assert np.abs(move).max() <= 0.2 + 1e-6 and abs(move.mean()) < 0.005
    assert move.std() == pytest.approx(0.1 * 0.9594, rel=0.05)  # a normal cut at two deviations
    factor = config.width / np.asarray(draws.scale)[:, 0] / 640
    assert factor.min() == pytest.approx(0.6) and factor.max() == pytest.approx(1.4)
    assert np.mean(np.isclose(factor, 0.6)) == pytest.approx(0.159, abs=0.03)  # clipped at one deviation
    assert not np.asarray(draws.mirrored).any()


@pytest.mark.parametrize("fills", ["longer", "both"])
def test_draws_of_random_sizes_and_places(fills: str) -> None:
    """Sizes are log-uniform; a larger image covers the input along an axis, a smaller one lies in it."""
    size, n, whole = np.array([60, 90]), 2000, jnp.asarray([0.0, 0.0, 128.0, 96.0])

    def draw(key: Any) -> Any:
        flip = jax.random.bernoulli(jax.random.fold_in(key, 9))
        return scaled_crop(key, jnp.asarray(size, jnp.int32), (0.25, 2.0), flip, whole, (96, 128), fills).geometry

    draws = jax.jit(jax.vmap(draw))(keys(n))
    ends = jax.vmap(lambda geometry: geometry.move_points(jnp.asarray([[0, 0], size[::-1]], jnp.float32)))(draws)
    low, high = np.asarray(ends.min(1)), np.asarray(ends.max(1))
    mirrored = np.asarray(draws.mirrored)
    assert abs(mirrored.mean() - 0.5) < 0.05
    zoom = (high - low)[:, 0] / 128  # 1: the image fills the input's width
    steps = np.histogram(np.log2(zoom), 3, (-2.001, 1.001))[0]
    assert steps.sum() == n and (abs(steps / n - 1 / 3) < 0.05).all()
    # The mirror image of pixel x is W - 1 - x, so that its end lies a pixel, of the image or the input, further left.
    slack = 0.01 + 3 * mirrored[:, None]
    larger = high - low > [128, 96]
    assert np.where(larger, (low <= slack) & (high >= [128, 96] - slack), True).all()
    assert np.where(larger, True, (low >= -slack) & (high <= [128, 96] + slack)).all()
    assert larger.any(0).all() and (~larger).any(0).all()


# --- colour --------------------------------------------------------------------------------------


def original_jitter(image: np.ndarray, alphas: np.ndarray, order: tuple[int, ...], noise: np.ndarray) -> np.ndarray:
    """Brightness (0), contrast (1) and saturation (2) one after another on a BGR image, then lighting."""
    image = image.astype(np.float64)
    grey = image @ np.array([0.114, 0.587, 0.299])
    mean = grey.mean()
    for step in order:
        alpha = alphas[step]
        if step == 0:
            image = image * alpha
        elif step == 1:
            image = image * alpha + mean * (1 - alpha)
        else:
            image = image * alpha + grey[..., None] * (1 - alpha)
    vectors = np.array(
        [
            [-0.58752847, -0.69563484, 0.41340352],
            [-0.5832747, 0.00994535, -0.81221408],
            [-0.56089297, 0.71832671, 0.41158938],
        ]
    )
    return image + vectors @ (np.array([0.2141788, 0.01817699, 0.00341571]) * noise)


def test_color_jitter_is_the_originals_in_every_order() -> None:
    config = AugmentConfig(color=0.4, lighting=0.1)
    image = np.random.default_rng(0).random((6, 7, 3), np.float32)
    jitter = jax.jit(lambda k: jitter_color(k, jnp.asarray(image), config, "BGR"))
    mirrored = jax.jit(lambda k: jitter_color(k, jnp.asarray(image[..., ::-1]), config, "RGB"))

    @jax.jit
    def random_numbers(key: Any) -> Any:
        a, b, c = jax.random.split(key, 3)
        uniform = jax.random.uniform(a, (3,), minval=-0.4, maxval=0.4)
        return 1 + uniform, jax.random.permutation(b, 3), 0.1 * jax.random.normal(c, (3,))

    orders = set()
    for key in keys(40):
        alphas, order, noise = map(np.asarray, random_numbers(key))
        orders.add(tuple(order.tolist()))
        expected = original_jitter(image, alphas, tuple(order.tolist()), noise)
        np.testing.assert_allclose(jitter(key), expected, atol=3e-6)
        # the same draws on the same image in RGB order give the same colours
        np.testing.assert_allclose(mirrored(key)[..., ::-1], expected, atol=3e-6)
    assert len(orders) == 6


def test_color_jitter_can_be_switched_off() -> None:
    image = np.random.default_rng(0).random((3, 4, 3), np.float32)
    off = jitter_color(jax.random.key(0), jnp.asarray(image), AugmentConfig(**QUIET), "BGR")
    np.testing.assert_array_equal(off, image)


# --- the whole -----------------------------------------------------------------------------------


def test_same_key_same_example_and_border_color() -> None:
    config = AugmentConfig(kind="crop", height=32, width=48, scales=(1.3,))
    canvas = jnp.asarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    size, objects = jnp.asarray([40, 64]), objects_of(jnp.asarray([[5.0, 6.0, 30.0, 20.0]]), jnp.zeros(1, jnp.int32))

    @jax.jit
    def run(key: jax.Array) -> Any:
        image, moved, _ = augment(key, canvas, size, objects, config, COCO_BGR)
        return image, moved.boxes

    one, again, other = run(jax.random.key(3)), run(jax.random.key(3)), run(jax.random.key(4))
    for a, b, c in zip(one, again, other, strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.abs(np.asarray(a) - np.asarray(c)).max() > 0.1
    assert one[0].dtype == one[1].dtype == jnp.float32

    # Without colour noise the border is black before normalisation, or exactly nothing after it.
    white = jnp.full((64, 64, 3), 255, jnp.uint8)
    config = AugmentConfig(kind="none", height=32, width=32, flip=0.0, **QUIET)
    for border in ("black", "mean"):
        preprocess = Preprocess(order="BGR", mean=COCO_BGR.mean, std=COCO_BGR.std, border=border)
        image, *_ = augment(jax.random.key(0), white, jnp.asarray([20, 64]), objects, config, preprocess)
        outside = np.zeros(3) if border == "mean" else -np.array(COCO_BGR.mean) / COCO_BGR.std
        np.testing.assert_allclose(image[0], np.tile(outside, (32, 1)), atol=1e-5)
        inside = (1 - np.array(COCO_BGR.mean)) / COCO_BGR.std  # channels in the network's order
        np.testing.assert_allclose(image[16, 16], inside, atol=1e-5)


def test_crop_boxes_cuts_and_drops_by_the_centre() -> None:
    boxes = jnp.asarray([[-10.0, 5, 30, 25], [-30, 5, 10, 25], [50, 30, 80, 60], [2, 2, 8, 8]])
    found = cut_boxes(objects_of(boxes, jnp.zeros(4, jnp.int32)), (48, 64))
    np.testing.assert_array_equal(found.boxes, [[0, 5, 30, 25], [0, 0, 0, 0], [0, 0, 0, 0], [2, 2, 8, 8]])
    assert found.valid.tolist() == [True, False, False, True]
