"""Whole hourglass networks: head maps of every stack and what lies between, from released checkpoints' names.

They have 100 to 210 million parameters, so `make test` leaves them out and `make golden-full` runs them.
Tolerances: 2e-5 of each array's largest value for the CornerNet family, 1e-4 of its standard deviation for the others.
"""

from __future__ import annotations

import re
from typing import Any

import jax
import numpy as np
import pytest

import kpjax
from kpjax.nn.pooling import corner_pool

from .cases import each_case, kind_of, nhwc
from .test_forward import CTDET_HEADS, TOLERANCE, check_between, close

pytestmark = pytest.mark.golden_full

CORNER_HEADS = {
    f"{theirs}_{kind}": f"{ours}_{head}"
    for theirs, ours in (("tl", "tl"), ("br", "br"), ("ct", "center"))
    for kind, head in (("heat", "heat"), ("tag", "tag"), ("regr", "off"), ("emb", "tag"), ("off", "off"))
}


def forward(case: Any, model: str) -> tuple[Any, list[dict[str, Any]], dict[str, Any]]:
    """The detector, every stack's heads, and every module's output by its path ("backbone/hourglass0/skip_1")."""
    heat = next(case[n] for n in case.arrays if re.search(r"out/(hm|tl_heat|t_heat)$", n))
    det = kpjax.build(model, num_classes=heat.shape[1])
    variables = kpjax.import_torch(det, case.params)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert parameters == case.info["n_parameters"]
    outputs, state = det.net.apply(
        variables, nhwc(case.input), train=False, capture_intermediates=True, mutable="intermediates"
    )
    between: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state["intermediates"]):
        keys = [str(getattr(entry, "key", "")) for entry in path]
        if "__call__" in keys:
            between["/".join(keys[: keys.index("__call__")])] = leaf
    return det, outputs, between


def original_names(det: Any, ours: dict[str, Any]) -> dict[str, Any]:
    """princeton-vl's and xingyizhou's module names -> our outputs."""
    config = det.net.config
    last = config.blocks[0] - 1
    stem = "stem_residual2" if "backbone/stem_residual2" in ours else "stem_residual"
    named = {"pre.0": ours["backbone/stem"], "pre": ours[f"backbone/{stem}"]}
    for i in range(config.stacks):
        stack = f"backbone/hourglass{i}"
        named |= {f"kps.{i}": ours[stack], f"cnvs.{i}": ours[f"backbone/out{i}"]}
        for theirs, name in (
            ("up1", f"skip_{last}"),
            ("low1", f"down_{last}"),
            ("low2", "inner"),
            ("low3", f"up_{last}"),
        ):
            named[f"kps.{i}.{theirs}"] = ours[f"{stack}/{name}"]
        for theirs, name in (("inters_", "seen"), ("cnvs_", "said"), ("inters", "between")):
            if i < config.stacks - 1:
                named[f"{theirs}.{i}"] = ours[f"backbone/{name}{i}"]
        for theirs, name in (("tl", "tl_pool"), ("br", "br_pool"), ("ct", "center_pool")):
            if f"{name}{i}" in ours:
                named[f"{theirs}_cnvs.{i}"] = ours[f"{name}{i}"]
    return named


def lite_names(det: Any, ours: dict[str, Any]) -> dict[str, Any]:
    """CornerNet-Lite's names for the same modules."""
    named = {}
    for name, value in original_names(det, ours).items():
        pool = re.fullmatch(r"(tl|br)_cnvs(\.\d)", name)
        named[f"{pool[1]}_modules{pool[2]}" if pool else f"hg.{re.sub('^kps', 'hgs', name)}"] = value
    return named


def mmdet_names(det: Any, ours: dict[str, Any]) -> dict[str, Any]:
    named = {"backbone.stem": ours["backbone/stem_residual"]}
    for i in range(det.net.config.stacks):
        named[f"backbone.hourglass_modules.{i}"] = ours[f"backbone/hourglass{i}"]
        named[f"backbone.out_convs.{i}"] = named[f"feat{i}"] = ours[f"backbone/out{i}"]
        for side, directions in (("tl", ("top", "left")), ("br", ("bottom", "right"))):
            pool = f"bbox_head.{side}_pool.{i}"
            named[pool] = ours[f"{side}_pool{i}"]
            for branch, direction in enumerate(directions, start=1):
                pooled = corner_pool(jax.nn.relu(ours[f"{side}_pool{i}/branch{branch}/bn"]), direction)
                named[f"{pool}.direction{branch}_pool"] = pooled
    return named


CORNER_MODELS = {
    "cornernet_hourglass104": "cornernet_hg104",
    "cornernet_lite_hourglass104": "cornernet_hg104",
    "cornernet_squeeze": "cornernet_squeeze",
    "centernet_triplet_hourglass52": "triplet_hg52",
    "centernet_triplet_hourglass104": "triplet_hg104",
}


@each_case(*CORNER_MODELS)
def test_corner_family(case: Any) -> None:
    model = CORNER_MODELS[kind_of(case.path.name) or ""]
    det, outputs, between = forward(case, model)
    for name in (n for n in case.arrays if n.startswith("out/")):
        expected = case[name]
        found = np.moveaxis(np.asarray(outputs[-1][CORNER_HEADS[name.removeprefix("out/")]]), -1, 1)
        worst = np.abs(found - expected).max() / np.abs(expected).max()
        assert worst <= 2e-5, f"{name}: {worst:.1e}"
    named = (lite_names if "hg.pre" in case.info["intermediates"]["modules"] else original_names)(det, between)
    for module, spec in case.info["intermediates"]["modules"].items():
        found = np.moveaxis(np.asarray(named[module]), -1, 1)
        assert list(found.shape) == spec["shape"], module
        largest = case[f"stats/{module}"][2]
        sample = found.reshape(-1)[:: spec["step"]][:256]
        worst = np.abs(sample - case[f"sub/{module}"]).max() / largest
        statistics = np.array([found.mean(dtype=np.float64), found.std(dtype=np.float64), np.abs(found).max()])
        assert worst <= 2e-5, f"{module}: {worst:.1e}"
        np.testing.assert_allclose(statistics, case[f"stats/{module}"], atol=2e-5 * largest, err_msg=module)


def check_stacks(case: Any, outputs: list[dict[str, Any]], stack: str, heads: dict[str, str]) -> None:
    names = [n for n in case.arrays if re.match(rf"{stack}\d+/out/", n)]
    assert len(names) == len(outputs) * len({n.rsplit("/", 1)[1] for n in names})
    for name in names:
        number, head = re.fullmatch(rf"{stack}(\d+)/out/(\w+)", name).groups()  # type: ignore[union-attr]
        close(outputs[int(number)][heads[head]], case[name], float(case[name].std()), name, TOLERANCE)


@each_case("fwd_hourglass_ctdet")
def test_xingyizhou(case: Any) -> None:
    det, outputs, between = forward(case, "centernet_hg104")
    check_stacks(case, outputs, "stack", CTDET_HEADS)
    check_between(case, original_names(det, between))


@each_case("fwd_mmdet_cornernet_hg104")
def test_mmdetection(case: Any) -> None:
    det, outputs, between = forward(case, "cornernet_hg104_mmdet")
    check_stacks(case, outputs, "level", CORNER_HEADS)
    check_between(case, mmdet_names(det, between))
