"""Mosaic: boxes and points where the pixels are, what is dropped, and the same on any number of devices."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kpjax.aot.hlo import read_collectives, sort_by_purpose
from kpjax.config import AugmentConfig, Config
from kpjax.data.augment import augment_several
from kpjax.data.mosaic import VISIBLE, Tiles, moved, with_next
from kpjax.detectors import from_config
from kpjax.errors import ConfigError
from kpjax.images.geometry import whole_crop
from kpjax.images.preprocess import Preprocess
from kpjax.objects import IGNORE, NONE, OBJECT, Objects, PointSet
from kpjax.objects import VISIBLE as SEEN
from kpjax.parallel.sharding import batch_sharding, make_mesh, put_batch
from kpjax.training.step import prepare
from tests.records import objects_of
from tests.tiny import SIDE as SIDE_OF_TINY
from tests.tiny import random_batch, tiny_config, tiny_detector

PLAIN = Preprocess(order="RGB", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
ENDS = PointSet(("left", "right"))
COLORS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0))
SIZE, SIDE = (70, 90), 96  # of the images and their canvas
FIRST, LAST = np.array([24, 20]), np.array([71, 51])  # the marked pixels, x y


def marked() -> tuple[np.ndarray, Objects]:
    """Four grey images with a rectangle each, in a colour of its own, and points in the middle of its sides."""
    canvases = np.zeros((4, SIDE, SIDE, 3), np.uint8)
    for canvas, color in zip(canvases, COLORS, strict=True):
        canvas[FIRST[1] : LAST[1] + 1, FIRST[0] : LAST[0] + 1] = color
    middle = (FIRST[1] + LAST[1]) / 2
    points = np.tile(np.array([[FIRST[0], middle], [LAST[0], middle]], np.float32), (4, 1, 1, 1))
    objects = objects_of(np.tile(np.concatenate([FIRST, LAST]).astype(np.float32), (4, 1, 1)), np.arange(4)[:, None])
    objects = dataclasses.replace(objects, points=points, seen=np.full((4, 1, 2), SEEN))
    # Three empty slots: an input has room for the objects of all four.
    return canvases, jax.tree.map(lambda x: np.concatenate([x, *[np.zeros_like(x)] * 3], 1), objects)


@pytest.mark.parametrize("fills", ["longer", "both"])
def test_boxes_and_points_follow_the_pixels(fills: str) -> None:
    """Each rectangle is where its box says, cut to its tile, or is gone with its box; points lie at its ends."""
    config = AugmentConfig(kind="none", height=96, width=128, color=0.0, lighting=0.0)
    config.mosaic, config.mosaic_scale_range = 0.9, (0.4, 1.6)
    images = jax.tree.map(jnp.asarray, (marked()[0], np.tile(np.int32(SIZE), (4, 1)), marked()[1]))
    preprocess = dataclasses.replace(PLAIN, fills=fills)

    @jax.jit
    @jax.vmap
    def run(key: jax.Array) -> Any:
        return augment_several(key, *images, jnp.bool_(True), config, preprocess, ENDS)[:2]

    kept = dropped = mosaics = ends = hidden = 0
    inputs, objects = jax.device_get(run(jax.random.split(jax.random.key(1), 24)))
    for number, image in enumerate(inputs):
        found = jax.tree.map(lambda x, n=number: x[n], objects)
        places = [np.argwhere(((image > 0.5) == np.array(color, bool)).all(-1))[:, ::-1] for color in COLORS]
        slots = np.flatnonzero(found.role == OBJECT)
        labels = found.labels[slots].tolist()
        assert len(set(labels)) == len(labels)
        mosaics += any(len(pixels) for pixels in places[1:])
        dropped += sum(len(places[label]) > 0 for label in set(range(4)) - set(labels))
        for slot, label in zip(slots, labels, strict=True):
            box, pixels = found.boxes[slot], places[label]
            kept += 1
            # Stretched, a pixel is up to 2.2 wide, and its middle, not its edge, lies at its index.
            np.testing.assert_allclose(box, [*pixels.min(0), *pixels.max(0)], atol=2.2 if fills == "both" else 1.1)
            for end, point, seen in zip(box[::2], found.points[slot], found.seen[slot], strict=True):
                hidden += not seen
                ends += bool(seen)
                assert not seen or point[0] == pytest.approx(end, abs=1e-3)
    assert mosaics > 15 and kept > 40 and dropped > 3 and ends > 50 and hidden > 10


place = jax.jit(moved, static_argnums=(2, 3, 4))


def of_four(boxes: list[list[float]], role: list[list[int]] | None = None) -> Objects:
    """Objects (4, 2, ...) of two boxes for each of four images, labelled 0 to 7."""
    found = objects_of(jnp.asarray(boxes, jnp.float32).reshape(4, 2, 4), jnp.arange(8).reshape(4, 2))
    return found if role is None else dataclasses.replace(found, role=jnp.asarray(role))


def tiles_of(center: tuple[int, int], whole: bool = False) -> Tiles:
    """Tiles of an input of 100 x 100, the pixels of the images as they are."""
    crop = whole_crop(jnp.asarray([100, 100]), (100, 100))
    crops = jax.tree.map(lambda x: jnp.stack([x] * 4), crop)
    return Tiles(crops, jnp.asarray(center, jnp.int32), jnp.bool_(whole))


def test_objects_are_cut_to_their_tile_and_dropped_where_too_little_is_left() -> None:
    boxes = [
        [[10, 10, 30, 30], [32, 10, 52, 30]],  # 8 of 20 columns are left of 40
        [[36, 5, 56, 25], [21, 5, 43, 25]],  # the second: 3 of 22 columns
        [[0, 58, 10, 64], [0, 0, 10, 59]],  # the second: above its tile
        [[38, 58, 98, 98], [97.5, 97.5, 99, 110]],
    ]
    wide = place(of_four(boxes), tiles_of((40, 60)), (100, 100), None, 0.0)
    # Two slots: the largest of those that stay.
    assert wide.labels.tolist() == [6, 0] and wide.valid.all()
    np.testing.assert_allclose(wide.boxes, [[40, 60, 98, 98], [10, 10, 30, 30]], atol=1e-4)
    assert VISIBLE == 0.2
    for first, role in ((8, OBJECT), (3, NONE)):  # columns of 20 in the tile
        alone = of_four([[[40 - first, 10, 60 - first, 30], [0, 0, 0, 0]]] + [[[0] * 4] * 2] * 3)
        alone = dataclasses.replace(alone, role=jnp.zeros((4, 2), jnp.int32).at[0, 0].set(OBJECT))
        found = place(alone, tiles_of((40, 60)), (100, 100), None, 0.0)
        assert found.role.tolist() == [role, NONE]
    # Boxes that end on their last pixel end on their tile's.
    last = place(of_four(boxes), tiles_of((40, 60)), (100, 100), None, 1.0)
    np.testing.assert_allclose(last.boxes[0], [40, 60, 98, 98], atol=1e-4)
    cut = place(of_four([[[5, 5, 70, 70], [0] * 4]] * 4, [[1, 0]] * 4), tiles_of((40, 60)), (100, 100), None, 1.0)
    assert [0, 0] not in cut.boxes.tolist()
    np.testing.assert_allclose(cut.boxes[0], [5, 5, 39, 59], atol=1e-4)


def test_what_does_not_fit_is_a_region_to_ignore_or_the_smallest() -> None:
    boxes = [[[x, 10, x + side, 10 + side] for x in (5, 30)] for side in (8, 9, 10, 11)]
    of_input = place(of_four(boxes, [[2, 1], [0, 0], [0, 0], [0, 0]]), tiles_of((100, 100)), (100, 100), None, 0.0)
    assert of_input.role.tolist() == [OBJECT, IGNORE] and of_input.labels.tolist() == [1, 0]
    # An image alone keeps its objects as they are, also one that is outside.
    boxes[0][0] = [-50.0, 10, -20, 30]
    alone = place(of_four(boxes), tiles_of((100, 100), whole=True), (100, 100), None, 0.0)
    assert sorted(alone.labels.tolist()) == [0, 1] and [-50.0, 10, -20, 30] in alone.boxes.tolist()


def mosaic_config() -> Config:
    config = tiny_config(steps=20)
    config.augment.mosaic, config.augment.mosaic_until, config.augment.kind = 1.0, 0.5, "crop"
    return config


def test_eight_devices_see_what_one_sees_and_send_images_to_their_neighbours_alone() -> None:
    config, detector, mesh = mosaic_config(), tiny_detector(), make_mesh(1)
    config.augment.mosaic = 0.7
    batch = random_batch(8)

    def make(batch: Any) -> Any:
        return prepare(detector, config, batch, 20)

    over = batch_sharding(mesh)
    compiled = jax.jit(make, in_shardings=(over,), out_shardings=over).lower(batch).compile()
    found = jax.device_get(compiled(put_batch(batch, mesh)))
    for one, eight in zip(*map(jax.tree.leaves, (jax.device_get(jax.jit(make)(batch)), found)), strict=True):
        np.testing.assert_allclose(one, eight, atol=2e-6)
    sent = sort_by_purpose(read_collectives(compiled.as_text(), 8), parameters=[], norms=[])
    assert {purpose for purpose, ones in sent.items() if ones} == {"images of mosaics"}
    pixels = [one for one in sent["images of mosaics"] if one.arrays[0][0] == "u8"]
    assert len(pixels) == 3 and {one.bytes for one in pixels} == {SIDE_OF_TINY**2 * 3}  # three images to a device


def test_an_example_is_a_function_of_its_counter_and_batch_until_mosaics_end() -> None:
    config, detector = mosaic_config(), tiny_detector()
    make = jax.jit(lambda batch: prepare(detector, config, batch, 20))
    for step, mosaics in ((9, True), (10, False)):
        batch = random_batch(8, step)
        images, targets = make(batch)
        again, same = make(random_batch(8, step))
        for one, two in zip(jax.tree.leaves((images, targets)), jax.tree.leaves((again, same)), strict=True):
            np.testing.assert_array_equal(one, two)
        # Image 4 shows images 5 to 7 too, and not image 3.
        for other, seen in ((5, True), (7, True), (3, False)):
            canvas = batch["canvas"].copy()
            canvas[other] = 255 - canvas[other]
            changed = np.abs(np.asarray(make({**batch, "canvas": canvas})[0][4]) - np.asarray(images[4])).max() > 0.1
            assert changed == (mosaics and seen), (step, other)


def test_the_last_examples_of_a_batch_take_its_first_images() -> None:
    found = with_next({"a": jnp.arange(5)}, 4)["a"]
    assert found.tolist() == [[i, (i + 1) % 5, (i + 2) % 5, (i + 3) % 5] for i in range(5)]


def test_what_takes_no_mosaic_says_so() -> None:
    config = mosaic_config()
    for name, text in (("centernet_r18_3d", "sizes in metres"), ("extremenet_hg104", "extreme points")):
        config.model.name, config.model.options = name, {}
        config.augment.kind, config.eval.resolution = "none", "fixed"
        with pytest.raises(ConfigError, match=text):
            from_config(config, 3)
    config.batch = 2
    with pytest.raises(ConfigError, match="takes 4 images"):
        config.check()
