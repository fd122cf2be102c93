"""Copy-paste and random erasing: boxes and points where the pixels are, and what hides an object."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kpjax.config import AugmentConfig
from kpjax.data.augment import augment_several, images_of
from kpjax.data.occlusion import hide, paste
from kpjax.errors import ConfigError
from kpjax.images.geometry import whole_crop
from kpjax.images.preprocess import Preprocess
from kpjax.objects import HIDDEN, NONE, OBJECT, UNLABELLED, VISIBLE
from tests.records import objects_of
from tests.tiny import tiny_config

PLAIN = Preprocess(order="RGB", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
QUIET: dict[str, Any] = {"color": 0.0, "lighting": 0.0}
FIRST, LAST = (24, 20), (71, 51)  # the marked pixels, x y


def keys(count: int) -> jax.Array:
    return jax.random.split(jax.random.key(5), count)


def extents(found: np.ndarray) -> list[int]:
    """x1 y1 x2 y2 of the true pixels, the last ones included."""
    places = np.argwhere(found)[:, ::-1]
    return [*places.min(0), *places.max(0)]


def test_pasted_objects_come_with_their_pixels_and_hide_what_is_under_them() -> None:
    """A red rectangle, and a green one of another image, which comes with its box or not at all."""
    config = AugmentConfig(kind="crop", height=96, width=128, scales=(0.7, 1.0, 1.3), border=32, **QUIET)
    config.copy_paste = 0.9
    assert images_of(config) == 2
    canvases = np.zeros((2, 96, 96, 3), np.uint8)
    for image in range(2):
        canvases[image, FIRST[1] : LAST[1] + 1, FIRST[0] : LAST[0] + 1, image] = 255
    boxes = np.zeros((2, 3, 4), np.float32)
    boxes[:, 0] = [*FIRST, LAST[0] + 1, LAST[1] + 1]
    objects = objects_of(jnp.asarray(boxes), jnp.tile(jnp.arange(2)[:, None], 3), np.tile([True, False, False], (2, 1)))
    sizes = jnp.tile(jnp.asarray([70, 90]), (2, 1))

    @jax.jit
    @jax.vmap
    def run(key: jax.Array) -> Any:
        return augment_several(
            key, jnp.asarray(canvases), sizes, objects, jnp.bool_(True), config, PLAIN, inclusive=True
        )[:2]

    inputs, found = jax.device_get(run(keys(40)))
    pasted = absent = hidden = partly = 0
    for image, boxes, labels, role in zip(inputs, found.boxes, found.labels, found.role, strict=True):
        red, green = image[..., 0] > 0.5, image[..., 1] > 0.5
        slots = {int(labels[slot]): slot for slot in np.flatnonzero(role == OBJECT)}
        assert len(slots) == np.count_nonzero(role == OBJECT)
        pasted, absent = pasted + (1 in slots), absent + (1 not in slots)
        assert green.any() == (1 in slots)
        if 1 in slots:
            box = np.clip(boxes[slots[1]], 0, [127, 95] * 2)
            np.testing.assert_allclose(extents(green), box, atol=1.1)
        if 0 in slots and 1 in slots:
            x1, y1, x2, y2 = np.clip(np.round(boxes[slots[0]]), 0, [128, 96] * 2).astype(int)
            part = red[y1:y2, x1:x2].mean()
            assert part > 0.4
            partly += part < 0.9
        elif 0 not in slots:
            hidden += 1  # half of its pixels at most are left, and the others are green
            assert 1 in slots and red.sum() < 1.05 * green.sum()
    assert pasted > 10 and absent > 10 and hidden > 1 and partly > 2


def test_objects_in_what_is_pasted_are_kept_and_points_follow() -> None:
    """Of the other image: a large object that is pasted or not, and two that lie in it, wholly and by a third."""
    boxes = jnp.asarray([[10, 10, 50, 50], [20, 20, 30, 30], [46, 20, 58, 30], [0, 0, 0, 0]], jnp.float32)
    other = objects_of(boxes, jnp.arange(4), np.array([True, True, True, False]))
    points = jnp.stack([boxes[:, :2] + 2, jnp.full((4, 2), 49.0)], axis=1)
    other = dataclasses.replace(other, points=points, seen=jnp.full((4, 2), VISIBLE))
    under = jnp.asarray([[12, 12, 40, 40], [44, 12, 60, 40], [70, 70, 80, 80], [200, 0, 210, 10]], jnp.float32)
    own = dataclasses.replace(objects_of(under, 4 + jnp.arange(4)), points=points, seen=jnp.full((4, 2), VISIBLE))
    crop = whole_crop(jnp.asarray([100, 100]), (100, 100))
    run = jax.jit(jax.vmap(lambda key, on: paste(key, own, other, crop, on, (100, 100), 0.0)))
    masks, found = jax.device_get(run(keys(16), jnp.arange(16) < 14))
    cases = set()
    for mask, labels, role, seen in zip(masks, found.labels, found.role, found.seen, strict=True):
        kept = set(labels[role == OBJECT].tolist())
        big, alone = bool(mask[45, 15]), bool(mask[25, 55])
        cases.add((big, alone))
        if big:
            assert {0, 1} <= kept and 4 not in kept and mask[10:50, 10:50].all()
            slot = labels.tolist().index(0)
            assert seen[slot].tolist() == [VISIBLE, VISIBLE]
            assert alone or not (kept & {2})
        elif not mask.any():
            assert kept == {4, 5, 6, 7} and (seen == VISIBLE).all()
        if {5} <= kept and alone and not big:
            assert (seen[labels.tolist().index(2)] == [VISIBLE, UNLABELLED]).all()
    assert {(True, False), (False, False), (True, True)} <= cases
    assert not masks[14:].any()


def test_hidden_objects_are_dropped_and_hidden_points_are_said_to_be() -> None:
    mask = np.zeros((40, 60), bool)
    mask[:, :20] = True
    boxes = jnp.asarray([[12, 5, 27, 15], [11, 5, 27, 15], [30, 5, 40, 15], [-9, 50, -1, 60]], jnp.float32)
    objects = objects_of(boxes, jnp.arange(4))
    points = jnp.asarray([[[19, 9], [20, 9]]] * 4, jnp.float32)
    seen = jnp.asarray([[2, 2], [2, 2], [1, 1], [0, 0]])
    found = hide(dataclasses.replace(objects, points=points, seen=seen), jnp.asarray(mask), 0.0)
    assert found.role.tolist() == [NONE, NONE, OBJECT, OBJECT]  # 8 and 9 of 15 and 16 columns
    assert found.seen.tolist() == [[HIDDEN, 2], [HIDDEN, 2], [1, 1], [0, 0]]
    wider = hide(objects_of(boxes.at[0, 2].set(29), jnp.arange(4)), jnp.asarray(mask), 0.0)
    assert wider.role.tolist()[0] == OBJECT  # 8 of 17


def test_copy_paste_needs_another_image() -> None:
    config = tiny_config(batch=4)
    config.augment.copy_paste = config.augment.mosaic = 0.5
    with pytest.raises(ConfigError, match="copy_paste takes 5 images of a micro-batch, which has 4"):
        config.check()
    assert images_of(config.augment) == 5
