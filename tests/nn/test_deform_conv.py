"""Deformable convolution against NumPy written from its definition, finite differences, and its own invariants."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from kpjax.nn import deform_conv as module
from kpjax.nn.deform_conv import DeformConv, deform_conv
from kpjax.nn.layers import NHWC
from tests.nn.compare import normal


def uniform(seed: int, low: float, high: float, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32)


def read(image: np.ndarray, y: float, x: float) -> np.ndarray:
    """The image (H, W, C) at a point: bilinear between cells, 0 for cells that do not exist."""
    value = np.zeros(image.shape[-1])
    for row in (int(np.floor(y)), int(np.floor(y)) + 1):
        for column in (int(np.floor(x)), int(np.floor(x)) + 1):
            if 0 <= row < image.shape[0] and 0 <= column < image.shape[1]:
                value += max(0.0, 1 - abs(y - row)) * max(0.0, 1 - abs(x - column)) * image[row, column]
    return value


def oracle(
    x: np.ndarray,
    offset: np.ndarray,
    mask: np.ndarray | None,
    kernel: np.ndarray,
    stride: int = 1,
    padding: int = 1,
    dilation: int = 1,
    groups: int = 1,
) -> np.ndarray:
    """The definition, one tap of one cell at a time, in float64."""
    x, offset, kernel = x.astype(np.float64), offset.astype(np.float64), kernel.astype(np.float64)
    batch, height, width, _ = offset.shape
    kh, kw, channels, features = kernel.shape
    taps, part = kh * kw, channels // groups
    y = np.zeros((batch, height, width, features))
    for b, i, j, g, u, v in np.ndindex(batch, height, width, groups, kh, kw):
        tap = g * taps + u * kw + v
        dy, dx = offset[b, i, j, 2 * tap : 2 * tap + 2]
        piece = slice(g * part, (g + 1) * part)
        row, column = i * stride - padding + u * dilation + dy, j * stride - padding + v * dilation + dx
        value = read(x[b, :, :, piece], row, column) * (1.0 if mask is None else mask[b, i, j, tap])
        y[b, i, j] += value @ kernel[u, v, piece]
    return y


@functools.partial(jax.jit, static_argnames=("stride", "padding", "dilation", "groups", "slabs"))
def jitted(x: Any, offset: Any, mask: Any, kernel: Any, **settings: int) -> Any:
    return deform_conv(x, offset, mask, kernel, **settings)


@functools.partial(jax.jit, static_argnames=("stride", "padding", "dilation"))
def gradients_of_sum(x: Any, offset: Any, kernel: Any, **settings: int) -> Any:
    return jax.grad(lambda x, o, k: deform_conv(x, o, None, k, **settings).sum(), argnums=(0, 1, 2))(x, offset, kernel)


def side(length: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    return (length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def inputs(
    size: tuple[int, int, int, int] = (2, 6, 5, 4),
    kernel: tuple[int, int] = (3, 3),
    features: int = 3,
    reach: float = 2.0,
    stride: int = 1,
    padding: int = 1,
    dilation: int = 1,
    groups: int = 1,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Random x, offset of up to `reach` cells, mask and kernel."""
    batch, height, width, channels = size
    cells = (batch, *(side(n, k, stride, padding, dilation) for n, k in zip((height, width), kernel, strict=True)))
    taps = groups * kernel[0] * kernel[1]
    return (
        normal(0, *size),
        uniform(1, -reach, reach, *cells, 2 * taps),
        uniform(2, 0, 1, *cells, taps),
        normal(3, *kernel, channels, features),
    )


GEOMETRIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "stride 2, odd size": {"size": (1, 7, 9, 2), "stride": 2},
    "stride 2, even size": {"size": (1, 8, 6, 2), "stride": 2},
    "dilation 2": {"size": (1, 7, 6, 2), "padding": 2, "dilation": 2},
    "no padding": {"padding": 0},
    "groups": {"groups": 2},
    "groups, stride, dilation": {"size": (1, 9, 8, 6), "groups": 3, "stride": 2, "dilation": 2, "padding": 2},
    "1x1": {"kernel": (1, 1), "padding": 0},
    "3x2": {"kernel": (3, 2)},
    "one cell": {"size": (1, 1, 1, 2)},
    "far away": {"reach": 9.0},
}


@pytest.mark.parametrize("modulated", [True, False])
@pytest.mark.parametrize("case", GEOMETRIES)
def test_definition(case: str, modulated: bool) -> None:
    x, offset, mask, kernel = inputs(**GEOMETRIES[case])
    geometry = {k: v for k, v in GEOMETRIES[case].items() if k in ("stride", "padding", "dilation", "groups")}
    given_mask = mask if modulated else None
    found = jitted(x, offset, given_mask, kernel, **geometry)
    np.testing.assert_allclose(found, oracle(x, offset, given_mask, kernel, **geometry), atol=2e-5)


# --- gradients -----------------------------------------------------------------------------------


def gather_form(x: Any, offset: Any, mask: Any, kernel: Any, stride: int, padding: int, dilation: int) -> Any:
    """The same by interpolating with weights of every cell, max(0, 1 - distance): differentiated by JAX itself."""
    height, width = x.shape[1:3]
    kh, kw = kernel.shape[:2]
    parts = []
    for tap, (u, v) in enumerate(np.ndindex(kh, kw)):
        rows = stride * jnp.arange(offset.shape[1])[:, None] - padding + u * dilation + offset[..., 2 * tap]
        columns = stride * jnp.arange(offset.shape[2]) - padding + v * dilation + offset[..., 2 * tap + 1]
        wy = jnp.maximum(0, 1 - jnp.abs(rows[..., None] - jnp.arange(height)))
        wx = jnp.maximum(0, 1 - jnp.abs(columns[..., None] - jnp.arange(width)))
        sample = jnp.einsum("bhwY,bhwX,bYXc->bhwc", wy, wx, x, precision="highest") * mask[..., tap, None]
        parts.append(sample @ kernel[u, v])
    return sum(parts)


@pytest.mark.parametrize("slabs", [0, 1, 2])
@pytest.mark.parametrize("case", ["plain", "stride 2, even size", "dilation 2", "far away"])
def test_gradients_are_those_of_another_form(case: str, slabs: int) -> None:
    arrays = inputs(**{"size": (2, 8, 6, 4), **GEOMETRIES[case]})
    geometry = {"stride": 1, "padding": 1, "dilation": 1}
    geometry |= {k: v for k, v in GEOMETRIES[case].items() if k in geometry}
    slabs = arrays[1].shape[1] if slabs == 2 and arrays[1].shape[1] % 2 else slabs

    def run(function: Callable[..., Any]) -> Any:
        y, pull = jax.vjp(function, *arrays)
        return y, pull(jnp.asarray(normal(9, *y.shape)))

    found = jax.jit(lambda: run(functools.partial(deform_conv, slabs=slabs, **geometry)))()
    wanted = jax.jit(lambda: run(functools.partial(gather_form, **geometry)))()
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=3e-6 * max(1.0, float(np.abs(b).max())))


def test_finite_differences() -> None:
    """Every input along a random direction; offsets keep away from whole cells, where the derivative jumps."""
    x, offset, mask, kernel = inputs(size=(1, 5, 6, 4), groups=2)
    offset = np.floor(offset) + np.clip(offset - np.floor(offset), 0.1, 0.9)
    arrays = (x, offset, mask, kernel)
    out = oracle(*arrays, groups=2)
    weights = normal(5, *out.shape).astype(np.float64)
    gradients = jax.jit(
        jax.grad(lambda *a: (deform_conv(*a, groups=2) * weights.astype(np.float32)).sum(), argnums=(0, 1, 2, 3))
    )(*arrays)
    step = 1e-4
    for n, gradient in enumerate(gradients):
        direction = normal(10 + n, *arrays[n].shape).clip(-2, 2).astype(np.float64)
        moved = []
        for sign in (1, -1):
            point = [a.astype(np.float64) for a in arrays]
            point[n] += sign * step * direction
            moved.append(oracle(*point, groups=2))
        expected = float(((moved[0] - moved[1]) * weights).sum()) / (2 * step)
        assert float((np.asarray(gradient) * direction).sum()) == pytest.approx(expected, rel=2e-4, abs=1e-3), n


def test_derivative_at_whole_offsets_is_towards_the_next_cell() -> None:
    """As the originals': a sample on a cell moves towards the next one; at -1, outside, not at all."""
    x = np.arange(1.0, 5.0, dtype=np.float32).reshape(1, 1, 4, 1) ** 2
    kernel = np.ones((1, 1, 1, 1), np.float32)
    offset = np.zeros((1, 1, 4, 2), np.float32)
    offset[0, 0, :, 1] = [0, 1, -3, 1]  # columns 0, 2, -1 and 4: the first two inside
    gradient = jax.grad(lambda o: deform_conv(x, o, None, kernel, padding=0).sum())(offset)
    np.testing.assert_allclose(gradient[0, 0, :, 1], [3, 7, 0, 0])


# --- what it has to be ---------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=("stride", "padding", "dilation"))
def convolution(x: Any, kernel: Any, *, stride: int, padding: int, dilation: int) -> Any:
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), [(padding, padding)] * 2, rhs_dilation=(dilation, dilation), dimension_numbers=NHWC
    )


# A few geometries, each compiled once, and any values.
DRAWN = [
    {"size": (5, 7), "stride": 1, "padding": 1, "dilation": 1},
    {"size": (7, 4), "stride": 2, "padding": 1, "dilation": 1},
    {"size": (8, 5), "stride": 2, "padding": 0, "dilation": 1},
    {"size": (6, 9), "stride": 1, "padding": 2, "dilation": 2},
]
cases = st.tuples(st.sampled_from(DRAWN), st.integers(0, 2**16))


def drawn(case: tuple[dict[str, Any], int]) -> tuple[np.ndarray, np.ndarray, tuple[int, int, int], dict[str, int]]:
    """x, kernel, the output's (1, h, w) and the geometry."""
    shape, seed = case
    geometry = {k: v for k, v in shape.items() if k != "size"}
    cells = (1, *(side(n, 3, **geometry) for n in shape["size"]))
    return normal(seed, 1, *shape["size"], 2), normal(seed + 1, 3, 3, 2, 3), cells, geometry


@settings(max_examples=25, deadline=None)
@given(case=cases)
def test_offsets_of_zero_are_an_ordinary_convolution(case: tuple[dict[str, Any], int]) -> None:
    x, kernel, cells, geometry = drawn(case)
    offset = np.zeros((*cells, 18), np.float32)
    expected = np.asarray(convolution(x, kernel, **geometry))
    np.testing.assert_allclose(jitted(x, offset, None, kernel, **geometry), expected, atol=1e-5)
    half = np.full((*cells, 9), 0.5, np.float32)
    np.testing.assert_allclose(jitted(x, offset, half, kernel, **geometry), expected / 2, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(case=cases, dy=st.integers(-3, 3), dx=st.integers(-3, 3))
def test_whole_offsets_are_a_shifted_convolution(case: tuple[dict[str, Any], int], dy: int, dx: int) -> None:
    x, kernel, cells, geometry = drawn(case)
    offset = np.broadcast_to(np.array([dy, dx] * 9, np.float32), (*cells, 18))
    found = jitted(x, offset, None, kernel, **geometry)
    # The map with the padding and three more rows of zeros around it, moved, and those rows cut off again.
    around = 3 + geometry["padding"]
    moved = np.roll(np.pad(x, ((0, 0), (around, around), (around, around), (0, 0))), (-dy, -dx), (1, 2))[:, 3:-3, 3:-3]
    np.testing.assert_allclose(found, convolution(moved, kernel, **{**geometry, "padding": 0}), atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(case=cases, far=st.sampled_from([-1e30, -60.0, 60.0, 1e30, np.inf, -np.inf, np.nan]))
def test_samples_outside_are_zero_and_learn_nothing(case: tuple[dict[str, Any], int], far: float) -> None:
    x, kernel, cells, geometry = drawn(case)
    offset = uniform(case[1], -1, 1, *cells, 18)
    offset[..., 8:10] = far  # the middle tap
    without = np.where(np.arange(9).reshape(3, 3, 1, 1) == 4, 0, kernel)
    np.testing.assert_allclose(
        jitted(x, offset, None, kernel, **geometry), jitted(x, offset, None, without, **geometry), atol=1e-5
    )
    dx, doffset, dkernel = gradients_of_sum(x, offset, kernel, **geometry)
    assert np.isfinite(dx).all()
    np.testing.assert_array_equal(doffset[..., 8:10], 0)
    np.testing.assert_array_equal(dkernel[1, 1], 0)


@settings(max_examples=20, deadline=None)
@given(row=st.floats(-1.5, 4.5, width=32), column=st.floats(-1.5, 5.5, width=32), seed=st.integers(0, 2**16))
def test_one_sample_anywhere(row: float, column: float, seed: int) -> None:
    """Inside, on the edge (one or two neighbours outside) or beyond it."""
    image = normal(seed, 4, 5, 2)
    offset = np.broadcast_to(np.array([row, column], np.float32), (1, 4, 5, 2))
    y = jitted(image[None], offset, None, np.eye(2, dtype=np.float32)[None, None], padding=0)
    np.testing.assert_allclose(y[0, 0, 0], read(image, row, column), atol=1e-5)


# --- slabs, memory, platforms, types -------------------------------------------------------------


def largest(jaxpr: Any) -> int:
    """Elements of the largest array anywhere in a program, of platforms that have no form of their own."""
    sizes = [0]
    for equation in jaxpr.eqns:
        if platforms := equation.params.get("branches_platforms"):
            sizes.append(largest(equation.params["branches"][platforms.index(None)].jaxpr))
            continue
        sizes += [int(np.prod(v.aval.shape)) for v in equation.outvars if hasattr(v.aval, "shape")]
        for parameter in jax.tree.leaves(equation.params, is_leaf=lambda p: hasattr(p, "eqns") or hasattr(p, "jaxpr")):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                sizes.append(largest(inner))
    return max(sizes)


@pytest.mark.parametrize("slabs", [1, 4])
def test_no_array_is_larger_than_the_columns(slabs: int) -> None:
    x, offset, mask, kernel = inputs(size=(2, 8, 16, 32), features=8)

    def run(*arrays: Any) -> Any:
        y, pull = jax.vjp(functools.partial(deform_conv, slabs=slabs), *arrays)
        return pull(y)

    columns = 2 * 8 * 16 * 9 * 32
    found = largest(jax.make_jaxpr(run)(x, offset, mask, kernel).jaxpr)
    assert found <= columns / slabs if slabs > 1 else found == columns


def test_large_maps_are_made_in_slabs() -> None:
    """128x128 cells of 256 channels: of 151 MB of columns an image at most 4 MiB exist at once.

    The largest array is the map itself, a ninth of them.
    """
    shapes = [(1, 128, 128, n) for n in (256, 18, 9)] + [(3, 3, 256, 256)]
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    assert largest(jax.make_jaxpr(deform_conv)(*arrays).jaxpr) == 128 * 128 * 256
    assert module._divisor(128, 3) == 4 and module._divisor(7, 2) == 7 and module._divisor(1, 2) == 1


def test_each_platform_has_its_own_slabs() -> None:
    arrays = inputs(size=(1, 8, 8, 4))
    for platform, loops in (("cpu", True), ("tpu", False), ("cuda", False)):
        text = jax.jit(deform_conv).trace(*arrays).lower(lowering_platforms=(platform,)).as_text()
        assert ("stablehlo.while" in text) == loops, platform


@pytest.mark.parametrize("slabs", [1, 2])
@pytest.mark.parametrize("stride, dilation, groups", [(1, 1, 1), (2, 1, 2), (1, 2, 2)])
def test_one_update_for_four_neighbours(
    slabs: int, stride: int, dilation: int, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA's form of the gradients, with samples on every side of the map and far beyond it."""
    x, kernel = normal(0, 2, 8, 6, 4), normal(1, 3, 3, 4, 5)
    out = tuple((side + 2 * dilation - 2 * dilation - 1) // stride + 1 for side in (8, 6))
    offset = uniform(2, -9, 9, 2, *out, groups * 18)
    mask, g = uniform(3, 0, 1, 2, *out, groups * 9), normal(4, 2, *out, 5)
    offset[0, 0, 0, :4] = np.nan, 0.0, -1.0, 0.5
    geometry = module._Geometry((3, 3), stride, dilation, dilation, groups, slabs, slabs, slabs, None)

    def gradients(cuda: bool) -> Any:
        def chosen(function: Any, on_cuda: Any, geometry: Any, *arrays: Any) -> Any:
            return (on_cuda if cuda else function)(slabs, *arrays)

        monkeypatch.setattr(module, "_on_platform", chosen)
        return jax.jit(lambda saved, g: module._backward.__wrapped__(geometry, saved, g))((x, offset, mask, kernel), g)

    for found, wanted in zip(gradients(True), gradients(False), strict=True):
        assert np.abs(np.nan_to_num(wanted)).max() > 0
        np.testing.assert_allclose(found, wanted, atol=2e-5 * max(1.0, float(np.nanmax(np.abs(wanted)))))


def test_a_sharded_batch_stays_where_it_is() -> None:
    """Each device samples its own images: only the kernel's gradient is summed over devices."""
    devices = jax.devices()[:4]
    if len(devices) < 2:
        pytest.skip("one device")
    mesh = jax.sharding.Mesh(np.array(devices), ("data",))
    over, whole = (jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*p)) for p in (("data",), ()))
    arrays = inputs(size=(len(devices), 8, 8, 4))

    def run(*arrays: Any) -> Any:
        y, pull = jax.vjp(deform_conv, *arrays)
        return y, pull(y)

    sharded = jax.jit(run, in_shardings=(over, over, over, whole), out_shardings=(over, (over, over, over, whole)))
    program = sharded.lower(*arrays).compile()
    text = program.as_text()
    assert "all-reduce" in text
    assert not any(word in text for word in ("all-gather", "all-to-all", "collective-permute"))
    for a, b in zip(jax.tree.leaves(sharded(*arrays)), jax.tree.leaves(jax.jit(run)(*arrays)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * max(1.0, float(np.abs(b).max())))


def test_bfloat16_is_summed_in_float32() -> None:
    x, offset, mask, kernel = inputs(size=(2, 8, 8, 16))

    @jax.jit
    def run(x: Any, kernel: Any) -> Any:
        return jax.value_and_grad(lambda x: (deform_conv(x, offset, mask, kernel) ** 2).sum())(x)

    exact, half = (run(jnp.asarray(x, d), jnp.asarray(kernel, d)) for d in (jnp.float32, jnp.bfloat16))
    assert half[1].dtype == jnp.bfloat16
    np.testing.assert_allclose(half[1].astype(np.float32), exact[1], atol=0.03 * float(np.abs(exact[1]).max()))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"offset": np.zeros((1, 4, 4, 16), np.float32)}, "offset is"),
        ({"mask": np.zeros((1, 4, 4, 8), np.float32)}, "mask is"),
        ({"kernel": np.zeros((3, 3, 3, 2), np.float32)}, "do not fit 4 channels"),
        ({"groups": 3}, "do not fit 4 channels"),
        ({"slabs": 3}, "divide the output's 4 rows"),
    ],
)
def test_shapes_that_do_not_fit(change: dict[str, Any], text: str) -> None:
    names = ("x", "offset", "mask", "kernel")
    arguments: dict[str, Any] = dict(zip(names, inputs(size=(1, 4, 4, 4)), strict=True)) | change
    with pytest.raises(ValueError, match=text):
        deform_conv(**arguments)


# --- the module ----------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [1, 2])
def test_module_starts_as_half_a_convolution(stride: int) -> None:
    x = normal(0, 2, 7, 8, 3)
    layer = DeformConv(5, stride=stride)
    y, variables = jax.jit(layer.init_with_output)(jax.random.key(0), x)
    params = variables["params"]
    assert params["offset"]["kernel"].shape == (3, 3, 3, 27)
    assert not np.any(params["offset"]["kernel"]) and not np.any(params["offset"]["bias"])
    np.testing.assert_allclose(
        y, 0.5 * convolution(x, params["kernel"], stride=stride, padding=1, dilation=1), atol=1e-5
    )


@pytest.mark.parametrize("modulated", [True, False])
def test_module_reads_offsets_then_mask(modulated: bool) -> None:
    """Channels (dy, dx) of each tap, then one logit a tap; two groups of channels."""
    x = normal(0, 1, 5, 6, 4)
    layer = DeformConv(3, groups=2, modulated=modulated, bias=True)
    params = jax.jit(layer.init)(jax.random.key(0), x)["params"]
    count = 2 * 9 * (3 if modulated else 2)
    assert params["offset"]["bias"].shape == (count,)
    params["offset"]["bias"] = values = normal(1, count)
    params["bias"] = bias = normal(2, 3)
    offset = np.broadcast_to(values[:36], (1, 5, 6, 36))
    mask = np.broadcast_to(1 / (1 + np.exp(-values[36:])), (1, 5, 6, 18)) if modulated else None
    expected = oracle(x, offset, mask, np.asarray(params["kernel"]), groups=2) + bias
    np.testing.assert_allclose(layer.apply({"params": params}, x), expected, atol=2e-5)


def test_module_keeps_positions_in_float32() -> None:
    x = normal(0, 1, 6, 6, 8)
    layer = DeformConv(4, dtype=jnp.bfloat16)
    variables = jax.jit(layer.init)(jax.random.key(0), x)
    y, state = layer.apply(variables, x, capture_intermediates=True, mutable="intermediates")
    assert y.dtype == jnp.bfloat16
    assert state["intermediates"]["offset"]["__call__"][0].dtype == jnp.float32


@pytest.mark.parametrize(("side", "channels"), [(16, 64), (128, 64)])
def test_open_batch(side: int, channels: int) -> None:
    """What `kpjax export` traces: slabs are counted without the number of images."""
    (batch,) = jax.export.symbolic_shape("b")
    shapes = [(batch, side, side, n) for n in (channels, 18, 9)]
    x, offset, mask = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    kernel = jax.ShapeDtypeStruct((3, 3, channels, channels), jnp.float32)
    exported = jax.export.export(jax.jit(deform_conv))(x, offset, mask, kernel)
    assert str(exported.out_avals[0].shape[0]) == "b"
