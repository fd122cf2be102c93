"""mmdetection's CenterNetHead and GaussianFocalLoss: values and gradients."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import kpjax
from kpjax.ops import losses

from .cases import companion, each_case, fill, nhwc
from .test_mmdet_targets import image_boxes, mmdet_targets


def leaf(case: Any, name: str) -> jax.Array:
    spec = case.info["details"]["tags"][name]
    return jnp.asarray(nhwc(fill(spec["tag"], spec["shape"], *spec["range"])))


@each_case("fn_mmdet_losses")
def test_centernet_head(case: Any) -> None:
    boxes = companion(case, "fn_mmdet_targets")
    leaves = {name: leaf(case, f"cn_{name}") for name in ("heat_logits", "wh", "offset")}
    images, height, width, classes = leaves["heat_logits"].shape
    det = kpjax.build("centernet_r18_mmdet", num_classes=classes)
    names = [n.split("/")[0] for n in case.arrays if n.endswith("/loss_center_heatmap")]
    assert names
    for name in names:
        size = (height * det.stride, width * det.stride)
        targets = mmdet_targets(det, image_boxes(boxes, name, images), size)
        counts = det.normaliser(targets)

        def total(maps: dict[str, Any], targets: Any = targets, counts: Any = counts) -> Any:
            outputs = {"heatmap": jax.nn.sigmoid(maps["heat_logits"]), "wh": maps["wh"], "offset": maps["offset"]}
            return det.loss([outputs], targets, counts)

        (value, parts), slopes = jax.jit(jax.value_and_grad(total, has_aux=True))(leaves)
        stored = {key: case[f"{name}/loss_{key}"].item() for key in ("center_heatmap", "wh", "offset")}
        np.testing.assert_allclose(parts["heatmap"], stored["center_heatmap"], rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(0.1 * parts["wh"], stored["wh"], rtol=1e-5, err_msg=name)  # stored with its weight
        np.testing.assert_allclose(parts["offset"], stored["offset"], rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(value, sum(stored.values()), rtol=1e-5, err_msg=name)
        for key, slope in slopes.items():
            expected = nhwc(case[f"{name}/grad_{key}"])
            np.testing.assert_allclose(slope, expected, rtol=1e-5, atol=1e-6, err_msg=f"{name} {key}")


@each_case("fn_mmdet_losses")
def test_gaussian_focal_loss(case: Any) -> None:
    """Any scores, 0 and 1 among them; the reductions are divisors."""
    score, target = jnp.asarray(nhwc(case["in/gfl_pred"])), jnp.asarray(nhwc(case["in/gfl_target"]))
    names = [n for n in case.arrays if n.startswith("gfl_") and not n.endswith("/grad")]
    assert names
    for name in names:
        _, reduction, factor = name.split("_")
        mean = float(score.size) if reduction == "mean" else 1.0
        divisor = mean if factor == "None" else float(factor)
        value, slope = jax.jit(jax.value_and_grad(losses.gaussian_focal_loss))(score, target, divisor)
        np.testing.assert_allclose(value, case[name].item(), rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(slope, nhwc(case[f"{name}/grad"]), rtol=1e-5, atol=1e-6, err_msg=name)
