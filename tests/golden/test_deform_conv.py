"""Deformable convolution, modulated and not: the output and the gradients of everything (1e-5)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kpjax.nn.deform_conv import deform_conv

from .cases import each_case, fill, nhwc


def read(spec: dict[str, Any], name: str) -> np.ndarray | None:
    """An input as the reference had it, in our layout."""
    if name not in spec["inputs"]:
        return None
    entry = spec["inputs"][name]
    array = fill(entry["tag"], entry["shape"], *entry["range"])
    return layout(name, array)


def layout(name: str, array: np.ndarray) -> np.ndarray:
    """NCHW -> NHWC, OIHW -> HWIO; a bias stays."""
    if name.endswith("weight"):
        return array.transpose(2, 3, 1, 0)
    return nhwc(array) if array.ndim == 4 else array


@each_case("fn_deform_conv")
def test_deform_conv(case: Any) -> None:
    assert case.info["subcases"]
    for spec in case.info["subcases"]:
        name = spec["name"]
        assert spec.get("groups", 1) == 1, f"{name}: a grouped kernel"
        settings = {
            "stride": spec["stride"],
            "padding": spec["padding"],
            "dilation": spec.get("dilation", 1),
            "groups": spec.get("deform_groups", 1),
        }
        inputs = {key: read(spec, key) for key in ("x", "offset", "mask", "weight", "bias")}
        given = {key: value for key, value in inputs.items() if value is not None}

        def run(given: dict[str, Any], settings: dict[str, int] = settings) -> Any:
            y = deform_conv(given["x"], given["offset"], given.get("mask"), given["weight"], **settings)
            return y + given.get("bias", 0.0)

        y, pull = jax.jit(lambda given, run=run: jax.vjp(run, given))(given)
        (gradients,) = pull(jnp.asarray(read(spec, "grad_out")))
        found = {"out": y} | {f"grad_{key}": value for key, value in gradients.items()}
        wanted = {key.removeprefix(f"{name}/"): case[key] for key in case.arrays if key.startswith(f"{name}/")}
        assert set(found) == set(wanted), name
        for key, value in wanted.items():
            np.testing.assert_allclose(found[key], layout(key, value), atol=1e-5, rtol=0, err_msg=f"{name}/{key}")
