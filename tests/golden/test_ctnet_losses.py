"""xingyizhou's losses: values and gradients."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import kpjax
from kpjax.ops import losses

from .cases import each_case, fill, nhwc


def leaf(case: Any, name: str) -> jax.Array:
    """A head map of the case, NHWC."""
    spec = case.info["details"]["tags"][name]
    return jnp.asarray(nhwc(fill(spec["tag"], spec["shape"], *spec["range"])))


def objects(case: Any, empty: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Flat cells (B, M), mask (B, M) and the number of objects."""
    mask = jnp.asarray(case["in/mask"] > 0)
    mask = jnp.zeros_like(mask) if empty else mask
    return jnp.asarray(case["in/ind"], jnp.int32), mask, mask.sum()


def heat_target(case: Any, name: str) -> jax.Array:
    target = jnp.asarray(nhwc(case["in/hm_target"]))
    if name.endswith(("no_object", "empty")):
        return jnp.zeros_like(target)
    return jnp.full_like(target, 0.9999) if name.endswith("all_ignored") else target


def assert_loss(case: Any, name: str, value: jax.Array) -> None:
    np.testing.assert_allclose(value, case[name].item(), rtol=1e-5, atol=1e-12, err_msg=name)


def assert_gradient(case: Any, name: str, gradient: jax.Array) -> None:
    assert np.isfinite(gradient).all(), name
    np.testing.assert_allclose(gradient, nhwc(case[name]), rtol=1e-5, atol=1e-6, err_msg=name)


@each_case("fn_ctnet_losses")
def test_focal(case: Any) -> None:
    names = [name.split("/")[0] for name in case.arrays if name.startswith("focal") and name.endswith("/loss")]
    assert names
    for name in names:
        gradient = next(key for key in case.arrays if key.startswith(f"{name}/grad_"))
        logits, target = leaf(case, gradient.split("grad_")[1]), heat_target(case, name)
        value, slope = jax.value_and_grad(losses.focal_loss)(logits, target, (target == 1).sum())
        assert_loss(case, f"{name}/loss", value)
        assert_gradient(case, gradient, slope)


@each_case("fn_ctnet_losses")
def test_l1_at_objects(case: Any) -> None:
    """RegL1Loss divides by 2 n + 1e-4, RegLoss (smooth L1) by n + 1e-4."""
    for kind, function, channels in (("regl1", losses.l1_at, 2), ("reg_smoothl1", losses.smooth_l1_at, 1)):
        for name in (kind, f"{kind}_no_object"):
            index, mask, count = objects(case, name.endswith("no_object"))
            target = jnp.asarray(case["in/wh_target"])
            value, slope = jax.value_and_grad(function)(leaf(case, "wh"), index, mask, target, channels * count + 1e-4)
            assert_loss(case, f"{name}/loss", value)
            assert_gradient(case, f"{name}/grad_wh", slope)


@each_case("fn_ctnet_losses")
def test_class_specific_l1(case: Any) -> None:
    """The dense form of the reference (a mask over 2 K channels) as a gather of the own class's pair."""
    index, mask, _ = objects(case, False)
    dense_mask, dense_target = case["in/cat_mask"], case["in/cat_target"]
    own = dense_mask.reshape(*dense_mask.shape[:2], -1, 2).astype(bool)
    labels = own[..., 0].argmax(-1)
    pairs = dense_target.reshape(own.shape)
    target = np.take_along_axis(pairs, labels[..., None, None], axis=2)[:, :, 0]
    np.testing.assert_array_equal(own.any((-1, -2)), mask)
    value, slope = jax.value_and_grad(losses.class_l1_at)(
        leaf(case, "cat_wh"), index, mask, jnp.asarray(labels), jnp.asarray(target), dense_mask.sum() + 1e-4
    )
    assert_loss(case, "reg_weighted_l1/loss", value)
    assert_gradient(case, "reg_weighted_l1/grad_cat_wh", slope)


@each_case("fn_ctnet_losses")
def test_ctdet_total(case: Any) -> None:
    """The task's whole loss: one stack, two stacks (the second half the first), and no object at all."""
    names = [n.split("/")[0] for n in case.arrays if n.startswith("ctdet_total") and n.endswith("/hm_loss")]
    assert names
    for name in names:
        heat = heat_target(case, name)
        index, mask, _ = objects(case, name.endswith("empty"))
        det = kpjax.build("centernet_r18", num_classes=heat.shape[-1])
        targets = {
            "heatmap": heat,
            "index": index,
            "mask": mask,
            "wh": jnp.asarray(case["in/wh_target"]),
            "offset": jnp.asarray(case["in/reg_target"]),
            "label": jnp.zeros_like(index),
        }
        counts = det.normaliser(targets)
        stacks = case.info["details"][name].get("num_stacks", 1)

        def total(maps: Any, det: Any = det, targets: Any = targets, counts: Any = counts, n: int = stacks) -> Any:
            outputs = [{key: value * 0.5**stack for key, value in maps.items()} for stack in range(n)]
            return det.loss(outputs, targets, counts)

        leaves = {"heatmap": leaf(case, "hm_logits"), "wh": leaf(case, "wh"), "offset": leaf(case, "reg")}
        (value, parts), slopes = jax.jit(jax.value_and_grad(total, has_aux=True))(leaves)
        assert_loss(case, f"{name}/loss", value)
        for ours, theirs, gradient in (("heatmap", "hm", "hm"), ("wh", "wh", "wh"), ("offset", "off", "reg")):
            assert_loss(case, f"{name}/{theirs}_loss", parts[ours])
            assert_gradient(case, f"{name}/grad_{gradient}", slopes[ours])
