"""Corner pooling and the modules made of it, against the originals' extension and modules, with gradients."""

from __future__ import annotations

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kpjax.convert.hourglass import original_pool
from kpjax.convert.rules import apply_rules, flatten, unflatten
from kpjax.nn.pooling import DIRECTIONS, CascadeCornerPool, CenterPool, CornerPool, corner_pool

from .cases import each_case, fill, nhwc

MODULES = {
    "corner_pool_modules": {"tl_pool": CornerPool(("top", "left")), "br_pool": CornerPool(("bottom", "right"))},
    "cascade_center_pool_modules": {
        "tl_pool": CascadeCornerPool(("top", "left")),
        "br_pool": CascadeCornerPool(("bottom", "right")),
        "center_pool": CenterPool(),
    },
}


@each_case("corner_pool_ops")
def test_pooling(case: Any) -> None:
    """Values exactly, gradients to 1e-5; the input with ties is rounded to quarters."""
    plain, slope = (
        nhwc(fill(spec["tag"], spec["shape"], spec["low"], spec["high"]))
        for spec in (case.info["input"], case.info["upstream_gradient"])
    )
    names = [name.removesuffix("out") for name in case.arrays if name.endswith("out")]
    assert {name.split("/")[0] for name in names} == set(DIRECTIONS)
    for name in names:
        direction, form = name.split("/")
        x = np.round(4 * plain) / 4 if form == "ties_" else plain
        y, pull = jax.vjp(lambda x, d=direction: corner_pool(x, d), jnp.asarray(x))
        np.testing.assert_array_equal(y, nhwc(case[f"{name}out"]), err_msg=name)
        np.testing.assert_allclose(pull(slope)[0], nhwc(case[f"{name}grad_input"]), atol=1e-5, err_msg=name)


@each_case("corner_pool_modules", "cascade_center_pool_modules")
def test_modules(case: Any) -> None:
    """Outputs and input gradients to 1e-4 of the largest value."""
    modules = MODULES["cascade_center_pool_modules" if "cascade" in case.path.name else "corner_pool_modules"]
    shapes = json.loads((case.path / "state_dict.json").read_text())
    prefix, spec = case.info["key_prefix"], case.info["input"]
    assert set(shapes) == set(modules)
    for name, module in modules.items():
        x, slope = (nhwc(fill(f"{case.info['case']}/{name}/{end}", spec["shape"])) for end in ("input", "grad"))
        own = {key.removeprefix(f"{prefix}{name}."): case.params[key] for key, _ in shapes[name]}
        variables = jax.eval_shape(lambda m=module, x=x: m.init(jax.random.key(0), x, False))
        wanted = {path.replace("/", "/pool/", 1): leaf.shape for path, leaf in flatten(variables).items()}
        rules = original_pool("pool", "pool", cascade=name != "center_pool" and "cascade" in case.path.name)
        filled = unflatten(apply_rules(rules, {f"pool.{k}": v for k, v in own.items()}, wanted, name))
        variables = {kind: leaves["pool"] for kind, leaves in filled.items()}
        y, pull = jax.vjp(jax.jit(lambda x, m=module, v=variables: m.apply(v, x, False)), jnp.asarray(x))
        found = {"out": y, "grad_input": pull(jnp.asarray(slope))[0]}
        for kind in ("out", "grad_input"):
            if f"{kind}/{name}" in case.arrays:
                expected = nhwc(case[f"{kind}/{name}"])
                worst = np.abs(np.asarray(found[kind]) - expected).max() / np.abs(expected).max()
                assert worst <= 1e-4, f"{kind} of {name}: {worst:.1e}"
