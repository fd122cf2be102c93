"""What programs for a CPU get of their own: same results, functions of their own, options that this JAX knows."""

from __future__ import annotations

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kpjax.nn.cpu import separate_function_on_cpu
from kpjax.parallel import compiling
from kpjax.parallel.compiling import compiler_options
from kpjax.parallel.sharding import make_mesh


def _tree(x: jax.Array, tree: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {"sum": x + tree["a"], "product": jnp.sin(x) * tree["b"]}


def _inputs() -> tuple[jax.Array, dict[str, jax.Array]]:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 5)), jnp.float32)
    return x, {"a": x * 2, "b": x + 1}


def test_a_part_is_called_on_a_cpu_and_computes_the_same():
    inputs = _inputs()
    compiled = jax.jit(lambda *trees: separate_function_on_cpu(_tree)(*trees)).lower(*inputs).compile()
    assert " call(" in compiled.as_text()
    assert " call(" not in jax.jit(_tree).lower(*inputs).compile().as_text()
    jax.tree.map(np.testing.assert_allclose, compiled(*inputs), _tree(*inputs))


def test_other_devices_get_it_in_one_piece():
    def text(platform: str) -> str:
        program = jax.jit(lambda *trees: separate_function_on_cpu(_tree)(*trees))
        return jax.export.export(program, platforms=[platform])(*_inputs()).mlir_module()

    assert "inlineable" in text("cpu") and "call @" in text("cpu")
    assert "inlineable" not in text("tpu") + text("cuda") and "call @" not in text("tpu") + text("cuda")


def test_gradients_pass_through_it():
    x, tree = _inputs()
    through = jax.grad(lambda x: separate_function_on_cpu(_tree)(x, tree)["product"].sum())(x)
    np.testing.assert_allclose(through, jnp.cos(x) * tree["b"], rtol=1e-6)


def test_only_reductions_are_left_to_the_library():
    def program(x: jax.Array, kernel: jax.Array, m: jax.Array) -> tuple[jax.Array, ...]:
        y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return y, jnp.tanh(m @ m), x.sum((0, 1, 2))

    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((2, 32, 32, 64), (3, 3, 64, 64), (64, 64))]
    options = compiler_options(make_mesh())
    assert options, "this JAX does not know the option any more: evaluation took 1.17 times as long without it"

    def left(options: dict[str, str]) -> set[str]:
        text = jax.jit(program, compiler_options=options).lower(*shapes).compile().as_text()
        kinds = ("reduce_sum", "dot_general", "conv_general_dilated")
        return {kind for line in text.splitlines() for kind in kinds if "__ynn_fusion" in line and kind in line}

    assert left(options) == {"reduce_sum"}
    assert left({}) == {"reduce_sum", "dot_general", "conv_general_dilated"}, "what the option is there for"


def test_no_option_where_it_is_not_known_or_chosen_by_the_user(monkeypatch: pytest.MonkeyPatch):
    mesh = make_mesh()
    monkeypatch.setenv("XLA_FLAGS", f"--{compiling._LIBRARY}=")
    assert compiler_options(mesh) == {}
    monkeypatch.delenv("XLA_FLAGS")
    monkeypatch.setattr(compiling, "_LIBRARY", "xla_cpu_no_such_option")
    compiling._options.cache_clear()
    try:
        assert compiler_options(mesh) == {}
    finally:
        compiling._options.cache_clear()


def test_sorts_are_counted():
    x = jnp.arange(7.0)
    assert compiling.sorts_of(jax.jit(jnp.sort).lower(x).compile()) == 1
    assert compiling.sorts_of(jax.jit(jnp.sin).lower(x).compile()) == 0
    on_gpu = types.SimpleNamespace(
        as_text=lambda: 'x = f32[9] custom-call(y), custom_call_target="__cub$DeviceRadixSort"'
    )
    assert compiling.sorts_of(on_gpu) == 1
