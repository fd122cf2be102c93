"""Names of the four hourglass checkpoints, from the originals' definitions and not from our tables."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import kpjax
from kpjax.convert import ImportMismatch, import_torch
from kpjax.convert.rules import flatten, leaf_shapes

WIDTHS, BLOCKS, STEM, BRANCH, HEAD, CLASSES = (4, 6, 8), (2, 1, 2), 5, 3, 7, 2
SMALL: dict[str, Any] = {"features": WIDTHS, "blocks": BLOCKS, "stem": STEM, "stacks": 2, "head_channels": HEAD}
Keys = Iterator[tuple[str, tuple[int, ...]]]


def norm(name: str, channels: int) -> Keys:
    for leaf in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{leaf}", (channels,)
    yield f"{name}.num_batches_tracked", ()


def layer(conv: str, bn: str, out: int, inner: int, size: int) -> Keys:
    yield f"{conv}.weight", (out, inner, size, size)
    yield from norm(bn, out)


def conv_bn(name: str, out: int, inner: int, size: int = 3) -> Keys:
    return layer(f"{name}.conv", f"{name}.bn", out, inner, size)


def residual(name: str, out: int, inner: int, skip: str, stride: int = 1) -> Keys:
    yield from layer(f"{name}.conv1", f"{name}.bn1", out, inner, 3)
    yield from layer(f"{name}.conv2", f"{name}.bn2", out, out, 3)
    if stride != 1 or out != inner:
        yield from layer(f"{name}.{skip}.0", f"{name}.{skip}.1", out, inner, 1)


def hourglass(name: str, widths: tuple[int, ...], blocks: tuple[int, ...], skip: str) -> Keys:
    here, below = widths[:2]
    for i in range(blocks[0]):
        yield from residual(f"{name}.up1.{i}", here, here, skip)
        yield from residual(f"{name}.low1.{i}", below, below if i else here, skip, stride=1 if i else 2)
        last = i == blocks[0] - 1
        yield from residual(f"{name}.low3.{i}", here if last else below, below, skip)
    if len(widths) > 2:
        yield from hourglass(f"{name}.low2", widths[1:], blocks[1:], skip)
    else:
        for i in range(blocks[1]):
            yield from residual(f"{name}.low2.{i}", below, below, skip)


def backbone(mmdet: bool) -> Keys:
    width = WIDTHS[0]
    skip = "downsample" if mmdet else "skip"
    yield from conv_bn("backbone.stem.0" if mmdet else "pre.0", STEM, 3, 7)
    yield from residual("backbone.stem.1.0" if mmdet else "pre.1", width, STEM, skip, stride=2)
    for i in (0, 1):
        yield from hourglass(f"backbone.hourglass_modules.{i}" if mmdet else f"kps.{i}", WIDTHS, BLOCKS, skip)
        yield from conv_bn(f"backbone.out_convs.{i}" if mmdet else f"cnvs.{i}", width, width)
    yield from residual("backbone.inters.0" if mmdet else "inters.0", width, width, skip)
    if mmdet:
        yield from conv_bn("backbone.conv1x1s.0", width, width, 1)
        yield from conv_bn("backbone.remap_convs.0", width, width, 1)
    else:
        yield from layer("inters_.0.0", "inters_.0.1", width, width, 1)
        yield from layer("cnvs_.0.0", "cnvs_.0.1", width, width, 1)


def pool(name: str, cascade: bool) -> Keys:
    width = WIDTHS[0]
    for branch in (1, 2):
        yield from conv_bn(f"{name}.p{branch}_conv1", BRANCH, width)
        if cascade:
            yield from conv_bn(f"{name}.look_conv{branch}", BRANCH, width)
            yield f"{name}.P{branch}_look_conv.weight", (BRANCH, BRANCH, 3, 3)
    yield from layer(f"{name}.p_conv1", f"{name}.p_bn1", width, BRANCH, 3)
    yield from layer(f"{name}.conv1", f"{name}.bn1", width, width, 1)
    yield from conv_bn(f"{name}.conv2", width, width)


def mmdet_pool(name: str) -> Keys:
    width = WIDTHS[0]
    for branch in (1, 2):
        yield from conv_bn(f"{name}.direction{branch}_conv", BRANCH, width)
    yield from conv_bn(f"{name}.aftpool_conv", width, BRANCH)
    yield from conv_bn(f"{name}.conv1", width, width, 1)
    yield from conv_bn(f"{name}.conv2", width, width)


def head(name: str, out: int, last: str) -> Keys:
    for layer_name, shape in (("0.conv", (HEAD, WIDTHS[0], 3, 3)), (last, (out, HEAD, 1, 1))):
        yield f"{name}.{layer_name}.weight", shape
        yield f"{name}.{layer_name}.bias", shape[:1]


def keys_of(model: str) -> Keys:
    mmdet = model.endswith("mmdet")
    yield from backbone(mmdet)
    for i in (0, 1):
        if model == "centernet_hg104":
            for name, out in (("hm", CLASSES), ("wh", 2), ("reg", 2)):
                yield from head(f"{name}.{i}", out, "1")
            continue
        for side in ("tl", "br"):
            if mmdet:
                yield from mmdet_pool(f"bbox_head.{side}_pool.{i}")
                for name, out in (("heat", CLASSES), ("emb", 1), ("off", 2)):
                    yield from head(f"bbox_head.{side}_{name}.{i}", out, "1.conv")
            else:
                yield from pool(f"{side}_cnvs.{i}", cascade=model.startswith("triplet"))
                for name, out in (("heats", CLASSES), ("tags", 1), ("regrs", 2)):
                    yield from head(f"{side}_{name}.{i}", out, "1")
        if model.startswith("triplet"):
            yield from pool(f"ct_cnvs.{i}", cascade=False)
            yield from head(f"ct_heats.{i}", CLASSES, "1")
            yield from head(f"ct_regrs.{i}", 2, "1")


MODELS = ("cornernet_hg104", "cornernet_hg104_mmdet", "triplet_hg104", "centernet_hg104")


@functools.cache
def detector(model: str) -> Any:
    branch = {} if model == "centernet_hg104" else {"branch": BRANCH}
    return kpjax.build(model, CLASSES, **SMALL, **branch)


def checkpoint(model: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {key: np.asarray(rng.random(shape), np.float32) for key, shape in keys_of(model)}


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


@pytest.mark.parametrize("model", MODELS)
def test_a_checkpoint_of_another_kind_is_refused(model: str) -> None:
    arrays = checkpoint(model)
    other = checkpoint(MODELS[(MODELS.index(model) + 1) % len(MODELS)])
    for wrong in (other, dict(list(arrays.items())[:-1]), arrays | {"extra.weight": np.zeros(3)}):
        with pytest.raises(ImportMismatch, match="does not fit"):
            import_torch(detector(model), wrong)
