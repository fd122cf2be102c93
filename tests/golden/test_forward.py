"""Whole networks: head maps and what lies between, from a released checkpoint's names.

Tolerance: 1e-4 of each array's standard deviation, float32 on both sides.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

import kpjax
from kpjax.backbones.resnet import STAGES
from kpjax.nn.layers import max_pool_3x3_stride2

from .cases import each_case, nhwc

TOLERANCE = 1e-4

CTDET_HEADS = {"hm": "heatmap", "wh": "wh", "reg": "offset"}
MMDET_HEADS = {"center_heatmap": "heatmap", "wh": "wh", "offset": "offset"}


def forward(case: Any, model: str, **options: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The last stack's heads, and every module's output by its path ("backbone/trunk/conv1")."""
    heat = next(case[name] for name in case.arrays if name in ("out/hm", "out/center_heatmap"))
    det = kpjax.build(model, num_classes=heat.shape[1], **options)
    variables = kpjax.import_torch(det, case.params)
    images = nhwc(case.input)
    outputs, state = det.net.apply(variables, images, train=False, capture_intermediates=True, mutable="intermediates")
    between: dict[str, np.ndarray] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state["intermediates"]):
        keys = [str(getattr(entry, "key", "")) for entry in path]
        if "__call__" in keys:
            between["/".join(keys[: keys.index("__call__")])] = leaf
    return outputs[-1], between


def close(found: Any, expected: np.ndarray, std: float, name: str) -> None:
    found = np.moveaxis(np.asarray(found, np.float32), -1, 1)
    assert found.shape == expected.shape, name
    worst = np.abs(found - expected).max() / std
    assert worst <= TOLERANCE, f"{name}: {worst:.2e} of its standard deviation"


def check_heads(case: Any, outputs: dict[str, Any], heads: dict[str, str]) -> None:
    names = [name for name in case.arrays if name.startswith("out/")]
    assert {name.removeprefix("out/") for name in names} == set(heads)
    for name in names:
        close(outputs[heads[name.removeprefix("out/")]], case[name], float(case[name].std()), name)


def check_between(case: Any, ours: dict[str, Any]) -> None:
    """Samples and statistics (mean, standard deviation, largest absolute value) of the modules in between."""
    modules = list(case.info["intermediates"])
    assert modules
    for module in modules:
        assert module in ours, f"{module} of the reference is not mapped"
        found = np.moveaxis(np.asarray(ours[module], np.float32), -1, 1)
        spec = case.info["intermediates"][module]
        assert list(found.shape) == spec["shape"], module
        std = float(case[f"inter/{module}/stats"][1])
        strides = tuple(slice(None, None, step) for step in spec["strides"])
        close(np.moveaxis(found[strides], 1, -1), case[f"inter/{module}/sub"], std, module)
        statistics = np.array([found.mean(), found.std(), np.abs(found).max()])
        np.testing.assert_allclose(statistics, case[f"inter/{module}/stats"], atol=TOLERANCE * std, err_msg=module)


def trunk(between: dict[str, Any], depth: int, prefix: str) -> dict[str, Any]:
    """The reference's names of the trunk's stages -> our outputs."""
    blocks, _ = STAGES[depth]
    stages = {f"{prefix}layer{s}": between[f"backbone/trunk/layer{s}_{n - 1}"] for s, n in enumerate(blocks, start=1)}
    return {f"{prefix}maxpool": max_pool_3x3_stride2(jax.nn.relu(between["backbone/trunk/bn1"])), **stages}


@each_case("fwd_res18_ctdet")
def test_xingyizhou(case: Any) -> None:
    depth = int(case.info["arch"].removeprefix("res_"))
    outputs, between = forward(case, f"centernet_r{depth}", head_channels=case.info["head_conv"])
    check_heads(case, outputs, CTDET_HEADS)
    ours = trunk(between, depth, "")
    for step in (1, 2, 3):  # a Sequential of (deconvolution, BatchNorm, ReLU) three times
        first = 3 * (step - 1)
        deconv, norm = between[f"backbone/neck/deconv{step}"], between[f"backbone/neck/deconv{step}_bn"]
        ours |= {f"deconv_layers.{first}": deconv, f"deconv_layers.{first + 1}": norm}
        ours[f"deconv_layers.{first + 2}"] = jax.nn.relu(norm)
    check_between(case, ours)


@each_case("fwd_mmdet_centernet_r18")
def test_mmdetection(case: Any) -> None:
    model = case.info["config_model"]
    if model["neck"]["use_dcn"]:
        pytest.skip("deformable convolution: detector not built yet")
    depth = model["backbone"]["depth"]
    outputs, between = forward(case, f"centernet_r{depth}_mmdet", head_channels=model["bbox_head"]["feat_channels"])
    check_heads(case, outputs, MMDET_HEADS)
    ours = trunk(between, depth, "backbone.")
    for step in (1, 2, 3):  # ConvModules: convolution and deconvolution in turns
        for kind, number in (("conv", 2 * step - 2), ("deconv", 2 * step - 1)):
            ours[f"neck.deconv_layers.{number}.conv"] = between[f"backbone/neck/{kind}{step}"]
            ours[f"neck.deconv_layers.{number}"] = jax.nn.relu(between[f"backbone/neck/{kind}{step}_bn"])
    ours["feat0"] = ours["neck.deconv_layers.5"]
    check_between(case, ours)
