"""Names of the hourglass checkpoints, from the originals' definitions and not from our tables."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

import kpjax
from kpjax.convert import ImportMismatch, import_torch, load_backbone, resembles
from kpjax.convert.rules import flatten, leaf_shapes, unflatten

from . import released

CLASSES = 2


MODELS = (
    "cornernet_hg104",
    "cornernet_hg104_mmdet",
    "triplet_hg104",
    "centernet_hg104",
    "centernet_hg104_pose",
    "extremenet_hg104",
    "cornernet_squeeze",
    "cornernet_saccade",
)


@functools.cache
def detector(model: str) -> Any:
    return kpjax.build(model, CLASSES, **released.SMALL[model])


def checkpoint(model: str) -> dict[str, np.ndarray]:
    rng, keys = np.random.default_rng(0), released.keys(model, CLASSES, **released.SMALL[model])
    return {key: np.asarray(rng.random(shape), np.float32) for key, shape in keys}


@pytest.mark.parametrize("model", MODELS)
def test_every_leaf_is_filled_once(model: str) -> None:
    arrays = checkpoint(model)
    leaves = flatten(import_torch(detector(model), {f"module.{key}": value for key, value in arrays.items()}))
    assert {path: leaf.shape for path, leaf in leaves.items()} == leaf_shapes(detector(model))
    # Every array arrives once, whatever its place: compare the sums that a transposition leaves alone.
    given = sorted(float(v.sum()) for k, v in arrays.items() if not k.endswith("num_batches_tracked"))
    np.testing.assert_allclose(sorted(float(leaf.sum()) for leaf in leaves.values()), given, rtol=1e-5)


def test_some_places() -> None:
    arrays = checkpoint("triplet_hg104")
    leaves = flatten(import_torch(detector("triplet_hg104"), arrays))
    for theirs, ours in (
        ("kps.1.low2.low2.1.conv2.weight", "params/backbone/hourglass1/inner/inner_1/second/conv/kernel"),
        ("kps.0.low3.1.skip.0.weight", "params/backbone/hourglass0/up_1/skip_conv/kernel"),
        ("br_cnvs.1.P2_look_conv.weight", "params/br_pool1/along2/kernel"),
        ("ct_regrs.0.1.weight", "params/center_heads0/center_off_out/kernel"),
    ):
        np.testing.assert_array_equal(leaves[ours], arrays[theirs].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(leaves["batch_stats/backbone/said0/bn/var"], arrays["cnvs_.0.1.running_var"])


def test_places_of_fire_modules() -> None:
    arrays = checkpoint("cornernet_squeeze")
    leaves = flatten(import_torch(detector("cornernet_squeeze"), arrays))
    inner = "params/backbone/hourglass1/inner"
    given = arrays["hg.hgs.1.low2.low2.1.conv_3x3.weight"]
    np.testing.assert_array_equal(leaves[f"{inner}/inner_1/second/depthwise/kernel"], given[:, 0].transpose(1, 2, 0))
    given = arrays["hg.hgs.1.low2.up2.weight"]  # a transposed convolution's has the input's channels first
    np.testing.assert_array_equal(leaves[f"{inner}/double/kernel"], given.transpose(2, 3, 0, 1))
    given = arrays["hg.hgs.1.low2.low1.0.conv_1x1.weight"]
    np.testing.assert_array_equal(leaves[f"{inner}/down_0/second/pointwise/kernel"], given.transpose(2, 3, 1, 0))
    given = arrays["hg.pre.2.conv2.weight"]
    np.testing.assert_array_equal(
        leaves["params/backbone/stem_residual2/second/conv/kernel"], given.transpose(2, 3, 1, 0)
    )


def test_a_backbone_of_fire_modules_starts_another() -> None:
    arrays = checkpoint("cornernet_squeeze")
    shapes = leaf_shapes(detector("cornernet_squeeze"))
    zeros = unflatten({path: np.zeros(shape, np.float32) for path, shape in shapes.items()})
    load = load_backbone(detector("cornernet_squeeze"), zeros, arrays)
    assert set(load.loaded) == {path for path in shapes if "/backbone/" in path}
    given = arrays["hg.hgs.0.up2.bias"]
    np.testing.assert_array_equal(load.variables["params"]["backbone"]["hourglass0"]["double"]["bias"], given)
    assert any(line.startswith("tl_offs.0.0.conv.weight: of the detector") for line in load.ignored)


def test_two_programs_name_one_network() -> None:
    """CornerNet-Lite has CornerNet too, with other names."""
    given = list(checkpoint("cornernet_hg104").values())
    renamed = dict(released.keys("cornernet_hg104_lite", CLASSES, **released.SMALL["cornernet_hg104"]))
    ours = flatten(import_torch(detector("cornernet_hg104"), checkpoint("cornernet_hg104")))
    theirs = flatten(import_torch(detector("cornernet_hg104"), dict(zip(renamed, given, strict=True))))
    assert ours.keys() == theirs.keys()
    for path, leaf in ours.items():
        np.testing.assert_array_equal(leaf, theirs[path])


def test_one_table_tells_two_networks_apart() -> None:
    names = ("cornernet_hg104", "cornernet_squeeze")
    models = {
        name: functools.partial(lambda name, classes: kpjax.build(name, classes, **released.SMALL[name]), name)
        for name in names
    }
    for name in names:
        assert resembles(checkpoint(name), models)[0] == name


@pytest.mark.parametrize("model", MODELS)
def test_a_checkpoint_of_another_kind_is_refused(model: str) -> None:
    arrays = checkpoint(model)
    other = checkpoint(MODELS[(MODELS.index(model) + 1) % len(MODELS)])
    for wrong in (other, dict(list(arrays.items())[:-1]), arrays | {"extra.weight": np.zeros(3)}):
        with pytest.raises(ImportMismatch, match="does not fit"):
            import_torch(detector(model), wrong)
