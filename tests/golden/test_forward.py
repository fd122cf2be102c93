"""Whole networks: head maps and what lies between, from a released checkpoint's names.

Tolerance: 1e-4 of each array's standard deviation, 3e-4 for DLA-34 with deformable convolution; float32 on
both sides.
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
DLA_DCN_TOLERANCE = 3e-4

CTDET_HEADS = {"hm": "heatmap", "wh": "wh", "reg": "offset"}
MMDET_HEADS = {"center_heatmap": "heatmap", "wh": "wh", "offset": "offset"}


def forward(case: Any, model: str, **options: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The last stack's heads, and every module's output by its path ("backbone/trunk/conv1")."""
    heat = next(case[name] for name in case.arrays if name in ("out/hm", "out/center_heatmap"))
    det = kpjax.build(model, num_classes=heat.shape[1], **options)
    variables = kpjax.import_torch(det, case.params)
    images = nhwc(case.input)

    @jax.jit
    def run(variables: Any, images: Any) -> Any:
        return det.net.apply(variables, images, train=False, capture_intermediates=True, mutable="intermediates")

    outputs, state = run(variables, images)
    between: dict[str, np.ndarray] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state["intermediates"]):
        keys = [str(getattr(entry, "key", "")) for entry in path]
        if "__call__" in keys:
            between["/".join(keys[: keys.index("__call__")])] = leaf
    return outputs[-1], between


def close(found: Any, expected: np.ndarray, std: float, name: str, tolerance: float) -> None:
    found = np.moveaxis(np.asarray(found, np.float32), -1, 1)
    assert found.shape == expected.shape, name
    worst = np.abs(found - expected).max() / std
    assert worst <= tolerance, f"{name}: {worst:.2e} of its standard deviation"


def check_heads(case: Any, outputs: dict[str, Any], heads: dict[str, str], tolerance: float = TOLERANCE) -> None:
    names = [name for name in case.arrays if name.startswith("out/")]
    assert {name.removeprefix("out/") for name in names} == set(heads)
    for name in names:
        close(outputs[heads[name.removeprefix("out/")]], case[name], float(case[name].std()), name, tolerance)


def check_between(case: Any, ours: dict[str, Any], tolerance: float = TOLERANCE) -> None:
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
        close(np.moveaxis(found[strides], 1, -1), case[f"inter/{module}/sub"], std, module, tolerance)
        statistics = np.array([found.mean(), found.std(), np.abs(found).max()])
        np.testing.assert_allclose(statistics, case[f"inter/{module}/stats"], atol=tolerance * std, err_msg=module)


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


def check_resnet_dcn(case: Any) -> None:
    depth = int(case.info["arch"].removeprefix("resdcn_"))
    outputs, between = forward(case, f"centernet_r{depth}_dcn", head_channels=case.info["head_conv"])
    check_heads(case, outputs, CTDET_HEADS)
    ours = trunk(between, depth, "")
    for step in (1, 2, 3):  # (deformable convolution, BatchNorm, ReLU, deconvolution, BatchNorm, ReLU)
        for layer, first in (("conv", 6 * (step - 1)), ("deconv", 6 * (step - 1) + 3)):
            ours[f"deconv_layers.{first}"] = between[f"backbone/neck/{layer}{step}"]
            ours[f"deconv_layers.{first + 1}"] = between[f"backbone/neck/{layer}{step}_bn"]
    check_between(case, ours)


@each_case("fwd_resdcn18_ctdet")
def test_resnet18_dcn(case: Any) -> None:
    check_resnet_dcn(case)


@pytest.mark.golden_full
@each_case("fwd_resdcn101_ctdet")
def test_resnet101_dcn(case: Any) -> None:
    check_resnet_dcn(case)


def levels(between: dict[str, Any]) -> dict[str, Any]:
    """The reference's names of DLA's stages -> our outputs."""
    names = ["base_layer", *(f"level{i}" for i in range(6))]
    return {f"base.{name}": between[f"backbone/trunk/{name}"] for name in names}


def aggregations(between: dict[str, Any]) -> dict[str, Any]:
    """The reference's names of what DLA's neck computes -> our outputs."""
    return {
        ("" if path[2] == "ida_up" else "dla_up.") + ".".join(path[2:]): leaf
        for path, leaf in ((name.split("/"), leaf) for name, leaf in between.items())
        if path[:2] == ["backbone", "neck"] and len(path) > 3
    }


def dla_dcn(between: dict[str, Any]) -> dict[str, Any]:
    """The reference's names of what DLA with deformable convolutions computes -> our outputs."""
    ours = levels(between) | aggregations(between)
    return ours | {f"{n.removesuffix('.offset')}.conv_offset_mask": v for n, v in ours.items() if n.endswith(".offset")}


@each_case("fwd_dla34_ctdet")
def test_dla_with_dcn(case: Any) -> None:
    outputs, between = forward(case, "centernet_dla34", head_channels=case.info["head_conv"])
    check_heads(case, outputs, CTDET_HEADS, DLA_DCN_TOLERANCE)
    check_between(case, dla_dcn(between), DLA_DCN_TOLERANCE)


@each_case("fwd_dlav034_ctdet")
def test_dla_without_dcn(case: Any) -> None:
    outputs, between = forward(case, "centernet_dla34_nodcn", head_channels=case.info["head_conv"])
    check_heads(case, outputs, CTDET_HEADS)
    ours = levels(between) | aggregations(between)
    for i in range(3):  # the first map of each aggregation passes through two identities
        ours[f"dla_up.ida_{i}.proj_0"] = ours[f"dla_up.ida_{i}.up_0"] = ours[f"base.level{4 - i}"]
    ours["dla_up"] = ours["dla_up.ida_2.node_3"]
    check_between(case, ours)


@each_case("fwd_mmdet_centernet_r18", "fwd_mmdet_centernet_r18_dcnv2")
def test_mmdetection(case: Any) -> None:
    model = case.info["config_model"]
    depth, dcn = model["backbone"]["depth"], "_dcn" if model["neck"]["use_dcn"] else ""
    name = f"centernet_r{depth}{dcn}_mmdet"
    outputs, between = forward(case, name, head_channels=model["bbox_head"]["feat_channels"])
    check_heads(case, outputs, MMDET_HEADS)
    ours = trunk(between, depth, "backbone.")
    for step in (1, 2, 3):  # ConvModules: convolution and deconvolution in turns
        for kind, number in (("conv", 2 * step - 2), ("deconv", 2 * step - 1)):
            ours[f"neck.deconv_layers.{number}.conv"] = between[f"backbone/neck/{kind}{step}"]
            ours[f"neck.deconv_layers.{number}"] = jax.nn.relu(between[f"backbone/neck/{kind}{step}_bn"])
        if dcn:
            ours[f"neck.deconv_layers.{2 * step - 2}.conv.conv_offset"] = between[f"backbone/neck/conv{step}/offset"]
    ours["feat0"] = ours["neck.deconv_layers.5"]
    check_between(case, ours)
