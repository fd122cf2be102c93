"""CornerNet-Squeeze: its network's parts, targets of stride 8, decoding, and what is not as in CornerNet."""

from __future__ import annotations

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kpjax
from kpjax.backbones.hourglass import Fire, Hourglass
from kpjax.detectors.base import Detector
from kpjax.errors import ConfigError
from kpjax.objects import Placed
from tests.records import objects_of
from tests.tiny import random_variables

SIZE, MAP = (63, 127), (8, 16)
SMALL: dict[str, Any] = {"features": (4, 4), "blocks": (1, 1), "stem": 4, "stacks": 1, "branch": 4, "head_channels": 4}
BOXES = np.array([(5, 6, 40, 31), (50, 10, 90, 60), (8, 36, 30, 58), (91, 3, 126, 62)], np.float32)
LABELS = np.array([0, 2, 0, 1], np.int32)


@functools.cache
def detector(**options: Any) -> Detector:
    return kpjax.build("cornernet_squeeze", 3, **(SMALL | options))


def zeros_of(module: Any, *shape: int) -> Any:
    """The module's variables for an input of this shape, all 0."""
    shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), np.zeros(shape, np.float32))
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


def test_the_released_network_has_maps_of_an_eighth() -> None:
    det = kpjax.build("cornernet_squeeze")
    images = jax.ShapeDtypeStruct((1, 511, 383, 3), jnp.float32)
    outputs, variables = jax.eval_shape(lambda x: det.net.init_with_output(jax.random.key(0), x), images)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == 31_771_852
    assert (len(outputs), det.stride, det.multiple, det.less) == (2, 8, 128, 1)
    assert {name: maps.shape for name, maps in outputs[-1].items()} == {
        f"{side}_{head}": (1, 64, 48, channels)
        for side in ("tl", "br")
        for head, channels in (("heat", 80), ("tag", 1), ("off", 2))
    }


def test_a_fire_module_has_a_shortcut_where_nothing_changes() -> None:
    """And without one it is what its two layers make of the map, ReLU last."""
    x = np.random.default_rng(0).standard_normal((2, 6, 8, 4), np.float32)
    for features, stride, shortcut in ((4, 1, True), (4, 2, False), (6, 1, False)):
        module = Fire(features, stride)
        variables = zeros_of(module, *x.shape)
        y = jax.jit(lambda variables, module=module: module.apply(variables, x, train=False))(variables)
        assert y.shape == (2, 6 // stride, 8 // stride, features)
        np.testing.assert_array_equal(y, np.maximum(x, 0) if shortcut else 0)  # all kernels and scales are 0
        second = variables["params"]["second"]
        assert second["depthwise"]["kernel"].shape == (3, 3, features // 2)
        assert second["pointwise"]["kernel"].shape == (1, 1, features // 2, features // 2)


def test_levels_go_up_by_learned_convolutions() -> None:
    top = zeros_of(Hourglass((4, 6, 8), (1, 1, 1), fire=True), 1, 8, 8, 4)["params"]
    assert top["double"]["kernel"].shape == (4, 4, 4, 4) and top["inner"]["double"]["kernel"].shape == (4, 4, 6, 6)
    assert top["double"]["bias"].shape == (4,) and set(top["skip_0"]) == {"first", "second"}


def encode(boxes: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    objects = objects_of(boxes, labels, np.ones(len(boxes), bool))
    return jax.jit(lambda objects: detector().encode(objects, Placed(SIZE)))(objects)


def test_cells_are_eighths() -> None:
    targets = encode(BOXES, LABELS)
    for side, xy in (("tl", BOXES[:, :2]), ("br", BOXES[:, 2:])):
        cells = xy.astype(np.float64) * np.array([MAP[1] / SIZE[1], MAP[0] / SIZE[0]])
        whole = np.floor(cells).astype(int)
        np.testing.assert_array_equal(targets[f"{side}_index"], whole[:, 1] * MAP[1] + whole[:, 0])
        np.testing.assert_allclose(targets[f"{side}_off"], cells - whole, atol=1e-5)
        assert targets[f"{side}_heat"].shape == (*MAP, 3)
        assert (np.asarray(targets[f"{side}_heat"])[whole[:, 1], whole[:, 0], LABELS] == 1).all()


@pytest.mark.parametrize("placed", [None, Placed(SIZE)])
def test_the_oracle_decodes_to_the_boxes(placed: Placed | None) -> None:
    det = detector(nms="none")
    targets = {name: value[None] for name, value in encode(BOXES, LABELS).items()}
    assert det.oracle is not None
    maps = jax.jit(lambda targets: det.oracle(targets, SIZE))(targets)  # type: ignore[misc]
    found = jax.jit(lambda maps: det.decode(maps, placed))(maps)
    kept = np.asarray(found.scores[0]) > 0.9
    rows = np.concatenate([found.labels[0][:, None], found.boxes[0]], 1)[kept]
    expected = np.concatenate([LABELS[:, None], BOXES], 1)
    np.testing.assert_allclose(rows[np.lexsort(rows.T[::-1])], expected[np.lexsort(expected.T[::-1])], atol=1e-3)


def test_predictor_pairs_20_corners_of_one_view() -> None:
    """Whose boxes lie in the image.  The weights are of a seed that gives corners to pair."""
    det = detector(distance=9.0)
    config = det.net.config
    assert (config.corners, config.pairs, config.merge_exponent) == (20, 100, 0)
    predictor = kpjax.Predictor(det, random_variables(det.net, *SIZE, seed=2), "na", top_k=10)
    found: Any = predictor(np.random.default_rng(0).integers(0, 256, (50, 100, 3), np.uint8))
    assert len(found.boxes) == len(found.scores) > 0
    assert (found.boxes >= 0).all() and (found.boxes <= [100, 50, 100, 50]).all()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"features": (4, 5)}, r"features is \(4, 5\); fire modules need even numbers of channels"),
        ({"head_kernel": 2}, "head_kernel is 2; choose one of 1, 3"),
        ({"stride": 4}, "no option 'stride'"),
    ],
)
def test_build_refuses_in_one_line(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as error:
        detector(**options)
    assert re.search(text, str(error.value)) and "\n" not in str(error.value)


def test_options_survive_json() -> None:
    det = kpjax.build("cornernet_squeeze", 3, **(SMALL | {"features": [4, 4], "blocks": [1, 1]}))
    assert det.net == detector().net == kpjax.build("cornernet_squeeze", 3, **det.options).net
