"""Programs of single primitives and layers: onnxruntime computes what JAX computes, at batches of 1 and 3."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from kpjax.errors import ConfigError
from kpjax.nn import deform_conv, layers, pooling
from kpjax.ops import nms, peaks

ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'kpjax[onnx]')")
pytest.importorskip("onnx", reason="onnx is not installed (pip install 'kpjax[onnx]')")

Function = Callable[..., Any]
RNG = np.random.default_rng(0)


def compare(function: Function, *inputs: np.ndarray, tolerance: float = 1e-5) -> None:
    """function of the inputs (3, ...), whose first axis is the batch, in onnxruntime and in JAX."""
    from kpjax.export.onnx_file import model_of

    (batch,) = jax.export.symbolic_shape("b")
    given = [(f"in{i}", jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype)) for i, x in enumerate(inputs)]
    count = len(jax.tree.leaves(jax.eval_shape(function, *inputs)))
    names = [f"out{i}" for i in range(count)]

    def flat(*arrays: Any) -> list[Any]:
        return jax.tree.leaves(function(*arrays))

    session = ort.InferenceSession(model_of(flat, [], given, names).SerializeToString())
    for rows in (1, 3):
        part = [x[:rows] for x in inputs]
        found = session.run(names, {name: x for (name, _), x in zip(given, part, strict=True)})
        for got, wanted in zip(found, jax.jit(flat)(*part), strict=True):
            wanted = np.asarray(wanted)
            assert got.shape == wanted.shape and got.dtype == wanted.dtype
            np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance)


def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
    return RNG.normal(0, scale, shape).astype(np.float32)


def whole(*shape: int, low: int = 0, high: int = 10) -> np.ndarray:
    return RNG.integers(low, high, shape, dtype=np.int32)


@pytest.mark.parametrize(
    ("strides", "padding", "dilation", "groups"),
    [
        ((1, 1), [(1, 1), (1, 1)], (1, 1), 1),
        ((2, 3), [(0, 2), (3, 1)], (1, 1), 1),
        ((1, 2), [(2, 2), (0, 0)], (2, 1), 2),
        ((2, 1), [(1, 0), (0, 1)], (1, 2), 6),
    ],
)
def test_convolution(strides: Any, padding: Any, dilation: Any, groups: int) -> None:
    kernel = normal(3, 2, 6 // groups, 12)

    def function(x: Any) -> Any:
        options = {"rhs_dilation": dilation, "feature_group_count": groups, "dimension_numbers": layers.NHWC}
        return lax.conv_general_dilated(x, kernel, strides, padding, **options)

    compare(function, normal(3, 11, 9, 6))


@pytest.mark.parametrize("dilation", [(2, 3), (2, 2)])
@pytest.mark.parametrize("padding", [[(2, 2), (2, 2)], [(1, 3), (0, 2)], [(3, 2), (1, 1)], [(2, 1), (3, 2)]])
def test_transposed_convolution(padding: Any, dilation: Any) -> None:
    kernel = normal(4, 4, 3, 5)

    def function(x: Any) -> Any:
        options = {"lhs_dilation": dilation, "dimension_numbers": layers.NHWC}
        return lax.conv_general_dilated(x, kernel, (1, 1), padding, **options)

    compare(function, normal(3, 5, 7, 3))


def test_products() -> None:
    matrix, x, y = normal(5, 7), normal(3, 4, 6, 5), normal(3, 4, 5, 2)
    kernel, last = normal(1, 1, 5, 4), normal(4, 3)
    compare(lambda x: x @ matrix, x)
    compare(lambda x, y: (jnp.einsum("bhwc,bhcd->bhwd", x, y), jnp.einsum("bhwc,bhcd->dbw", x, y)), x, y)
    compare(
        lambda x: lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=layers.NHWC) @ last,
        x,
    )


def pad_cases(x: Any) -> Any:
    return (
        lax.pad(x, 1.5, [(0, 0, 0), (1, 2, 0), (3, 0, 2)]),
        lax.pad(x, -1.0, [(0, 0, 0), (-1, 0, 0), (-2, 1, 1)]),
        lax.pad(x, 0.0, [(0, 0, 0), (0, -2, 1), (0, 0, 0)]),
        lax.pad(x > 0, True, [(0, 0, 0), (2, 1, 0), (0, 0, 1)]),
    )


def shape_cases(x: Any) -> Any:
    batch = x.shape[0]
    halves = jnp.concatenate([x, 2 * x])
    return (
        x[:, ::2, 1:4],
        x[:, ::-1, ::-1],
        jnp.stack([x, x + 1], axis=2),
        jnp.split(x, [1, 3], axis=1),
        x.transpose(2, 0, 1).reshape(5, -1),
        jnp.broadcast_to(x[:, :, None], (batch, 5, 2, 5)) * x[:, None, 1:3],
        halves[: halves.shape[0] // 2] + halves[halves.shape[0] // 2 :],
        jnp.arange(batch) * batch + x[:, 0, 0].astype(jnp.int32),
        x.reshape(batch * 5, 5),
        jnp.roll(x, 2, axis=1),
        jnp.tile(x, (1, 2, 1)),
        jnp.repeat(x, 2, axis=1),
        jnp.full((batch, 3), 0.5),
        jnp.zeros((batch, 0)),
    )


def reductions(x: Any) -> Any:
    ties = jnp.round(x)
    return (
        x.sum((1, 2)),
        x.max(1),
        x.min((0, 2)),
        (x > 0).any(2),
        (x > 0).all(1),
        (x > 0).sum(1),
        ties.argmax(1),
        ties.argmin(2),
        (ties > 0).argmax(2),
        jnp.broadcast_to(x[:, :1], x.shape).sum(1),
        x.transpose(0, 2, 1).max(1),
    )


def orders(x: Any) -> Any:
    ties = jnp.round(2 * x) + 0.5  # without zeros, of which JAX orders some by their sign
    return (
        lax.top_k(ties.reshape(x.shape[0], -1), 7),
        jnp.sort(x, axis=1),
        jnp.argsort(ties, axis=2, stable=True),
        jnp.argsort(ties > 1, axis=2, stable=True),
        lax.sort((ties, x), dimension=1, num_keys=1, is_stable=True),
        lax.top_k(ties, 3),
    )


def scans(x: Any) -> Any:
    return (
        lax.associative_scan(jnp.maximum, x, axis=1),
        lax.associative_scan(jnp.add, x, axis=2, reverse=True),
        lax.associative_scan(jnp.minimum, (4 * x).astype(jnp.int32), axis=1, reverse=True),
    )


def calls(x: Any) -> Any:
    twice = jax.custom_jvp(lambda x: 2 * x)
    twice.defjvp(lambda primals, tangents: (twice(*primals), tangents[0]))
    barrier = lax.optimization_barrier((x, x + 1))
    return jax.jit(jnp.sin)(x), twice(x), jax.checkpoint(jnp.cos)(x), jax.nn.relu(x), barrier, lax.stop_gradient(x)


@pytest.mark.parametrize("function", [pad_cases, shape_cases, reductions, orders, scans, calls])
def test_axes(function: Function) -> None:
    compare(function, normal(3, 5, 5))


def test_elementwise() -> None:
    def floats(x: Any, y: Any) -> Any:
        return (
            jnp.arctan2(x, y),
            jax.nn.sigmoid(40 * x),
            jnp.clip(x, -0.5, 0.7),
            x**3,
            jnp.abs(x) ** 1.5,
            lax.rem(x, y),
            x % y,
            jnp.sign(x),
            jnp.floor(x),
            lax.rsqrt(jnp.abs(x)),
            jnp.square(x) - jnp.exp(y),
            jnp.isfinite(x / jnp.round(y)),
            jnp.isnan(jnp.where(x > 0, jnp.nan, x)),
            (x != y) & ~((x <= y) | (x > 1)) ^ (y >= 0),
            jnp.where(x > 0, x > y, y > x),
            jnp.maximum(x > 0, y > 0),
            lax.select_n((jnp.abs(x).astype(jnp.int32) % 3), x, y, x + y),
            (5 * x).astype(jnp.int32),
            lax.clamp(-1.0, x, 1.0),
            lax.integer_pow(x, -2),
        )

    compare(floats, normal(3, 6, 5), normal(3, 6, 5), tolerance=1e-4)

    around = np.stack(np.meshgrid([-1, 0, 1], [0, 1, -1]), -1).astype(np.float32)
    compare(lambda xy: jnp.arctan2(xy[..., 0], xy[..., 1]), around)

    def integers(x: Any, y: Any) -> Any:
        return x // y, x % y, lax.div(x, y), lax.rem(x, y), -x, jnp.minimum(x, y), x == y, x.astype(jnp.float32) / 2

    compare(integers, whole(3, 20, low=-9), np.where(whole(3, 20) > 4, 3, -4).astype(np.int32))
    compare(
        lambda x: (x.astype(jnp.float32) / 255, jnp.where(x > 9, x, jnp.uint8(0)), x[..., ::-1]),
        RNG.integers(0, 256, (3, 4, 3), dtype=np.uint8),
    )


def test_small_probabilities_keep_their_digits() -> None:
    """A sigmoid that is only right to 1e-7 would exchange small scores."""
    compare(lambda x: 1e6 * jax.nn.sigmoid(x), np.linspace(-20, -8, 60, dtype=np.float32).reshape(3, 20))


def test_gather() -> None:
    def indexed(x: Any, i: Any) -> Any:
        batch = jnp.arange(x.shape[0])[:, None]
        j = jnp.abs(i) % 4
        return (
            jnp.take_along_axis(x, i[..., None] % 6, axis=1),
            jnp.take_along_axis(x, jnp.clip(i, -6, 5)[..., None], axis=1),  # negative ones count from the end
            jnp.take_along_axis(x, i[..., None], axis=1),  # NaN outside
            jnp.take_along_axis(i, i, axis=1),  # the least integer outside
            jnp.take_along_axis(x, i[..., None], axis=1, mode="clip"),
            x[batch, j],
            x[batch, :, j],
            x[batch, j, j],
            x[:, :, 1],
            x[:, jnp.array([3, -1, 0])],
            x[:, i[0, 0] % 6],
            lax.dynamic_slice_in_dim(x, i[0, 0], 3, axis=1),
            lax.dynamic_slice(x, (0, i[0, 1], i[0, 2]), (x.shape[0], 2, 2)),
            lax.dynamic_update_slice_in_dim(x, x[:, 1:3] + 1, i[0, 0], axis=1),
            lax.dynamic_update_slice_in_dim(x, x[..., :1] + 1, i[0, 1], axis=2),
            jax.vmap(lambda x, i: x.at[i].get(mode="clip"))(x, i),
            jnp.take(x, i[0], axis=2, mode="clip"),
        )

    compare(indexed, normal(3, 6, 4), whole(3, 7, low=-9, high=9))


def test_scatter() -> None:
    def written(x: Any, i: Any, v: Any) -> Any:
        first, at = x[0], i[0]
        single = jnp.argsort(at)  # each place once: of several values for one, any may win
        return (
            first.at[0].set(2.0),
            first.at[:, 1].set(v[0, :6]),
            first.at[i[0, 0] % 6, 1].set(7.0),
            first.at[single[:6], 0].set(v[0, :6], mode="drop"),
            first.at[jnp.where(at > 0, 50, single), 0].add(v[0], mode="drop"),
            first.at[at % 6].add(v[0][:, None]),
            first.at[at].max(v[0][:, None]),
            at.at[at % 7].add(1),
            (first > 0).at[-1].set(True),
        )

    compare(written, normal(3, 6, 4), whole(3, 7, low=-9, high=9), normal(3, 7))


def test_loops_and_branches() -> None:
    def loops(x: Any) -> Any:
        doubled = lax.while_loop(lambda s: s[0].max() < 40, lambda s: (s[0] * 2 + x.max(), s[1] + 1), (jnp.abs(x), 0))
        none = lax.while_loop(lambda n: n < 0, lambda n: n + 1, 3)
        carried = lax.scan(lambda c, row: (c + row, c * row), jnp.zeros(x.shape[::2]), jnp.moveaxis(x, 1, 0))
        back = lax.scan(lambda c, row: (c + row, c * 2), jnp.ones(x.shape[::2]), jnp.moveaxis(x, 1, 0), reverse=True)
        mapped = lax.map(lambda image: jnp.sort(image, axis=0) + image.shape[0], x)
        inner = lax.map(lambda image: lax.fori_loop(0, 3, lambda i, y: y + i * image, image), x)
        branch = lax.cond(x.sum() > 0, lambda x: (x, 1), lambda x: (-x, 0), x)
        several = [lax.switch(n + x.shape[0] * 0, [jnp.sin, jnp.cos, jnp.abs, jnp.negative], x) for n in range(-1, 5)]
        chosen = lax.switch((jnp.abs(x[0, 0, 0]) * 9).astype(jnp.int32), [jnp.sin, jnp.cos, jnp.abs, jnp.negative], x)
        return doubled, none, carried, back, mapped, inner, branch, several, chosen

    compare(loops, normal(3, 5, 4))


@pytest.mark.parametrize(
    ("window", "strides", "padding", "dilation"),
    [
        ((1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0)), (1, 1, 1, 1)),
        ((1, 2, 5, 1), (1, 1, 3, 1), ((0, 0), (0, 1), (4, 0), (0, 0)), (1, 2, 1, 1)),
        ((1, 2, 3, 3), (1, 2, 2, 2), ((0, 0), (0, 0), (1, 3), (0, 1)), (1, 1, 1, 1)),
    ],
)
def test_window_maximum(window: Any, strides: Any, padding: Any, dilation: Any) -> None:
    options: dict[str, Any] = {"window_dilation": dilation}

    def function(x: Any) -> Any:
        return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, padding, **options)

    compare(function, normal(3, 9, 11, 4))


def test_layers() -> None:
    x = normal(3, 6, 8, 4)
    compare(functools.partial(layers.conv_transpose_4x4, kernel=normal(4, 4, 4, 3)), x)
    compare(functools.partial(layers.upsample_depthwise, kernel=jnp.asarray(normal(8, 8, 4))), x)
    compare(lambda x: (layers.max_pool_3x3_stride2(x), layers.max_pool_2x2(x), peaks.keep_peaks(x)), x)
    compare(lambda x: [pooling.corner_pool(x, d) for d in pooling.DIRECTIONS] + [pooling.line_pool(x, 1)], x)


@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups", "slabs"), [(1, 1, 1, 1, 1), (2, 2, 2, 2, 0), (1, 1, 1, 4, 3)]
)
def test_deformable_convolution(stride: int, padding: int, dilation: int, groups: int, slabs: int) -> None:
    """Far offsets too, which leave the map, and whole ones."""
    kernel, x = normal(3, 3, 4, 5), normal(3, 9, 7, 4)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "slabs": slabs}
    side = [(n + 2 * padding - 2 * dilation - 1) // stride + 1 for n in x.shape[1:3]]
    offset = np.round(normal(3, *side, 18 * groups, scale=4), 1)
    mask = normal(3, *side, 9 * groups)
    compare(lambda x, o, m: deform_conv.deform_conv(x, o, m, kernel, **options), x, offset, mask)


@pytest.mark.parametrize("method", nms.METHODS)
@pytest.mark.parametrize("rules", [nms.ORIGINAL, nms.MMCV])
def test_soft_nms(method: str, rules: nms.SoftNms) -> None:
    rules = dataclasses.replace(rules, method=method, threshold=0.2)
    corner = RNG.uniform(0, 40, (3, 30, 2)).astype(np.float32)
    boxes = np.concatenate([corner, corner + RNG.uniform(5, 30, (3, 30, 2)).astype(np.float32)], -1)
    scores, labels = RNG.uniform(0, 1, (3, 30)).astype(np.float32), whole(3, 30, high=2)

    def function(boxes: Any, scores: Any, labels: Any) -> Any:
        one = functools.partial(nms.soft_nms, rules=rules, stale_rows=True, most=10)
        return lax.map(lambda x: one(*x), (boxes, scores, labels))

    compare(function, boxes, scores, labels)


def test_what_has_no_rule_is_named() -> None:
    with pytest.raises(ConfigError, match="primitive 'erf_inv'"):
        compare(lambda x: lax.erf_inv(x), normal(3, 2))
    with pytest.raises(ConfigError, match=r"sort by several keys \(in sort\)"):
        compare(lambda x: lax.sort((x, x), num_keys=2), normal(3, 2))


def test_weights_are_stored_once_and_what_is_not_used_is_not_stored() -> None:
    from kpjax.export.onnx_file import model_of

    weights = {"used": normal(5, 5), "unused": normal(7, 7)}
    (batch,) = jax.export.symbolic_shape("b")

    def function(weights: Any, x: Any) -> Any:
        dead = jnp.sin(x @ weights["unused"][:5])
        return [x @ weights["used"] + (x @ weights["used"]) * 2, dead][:1]

    model = model_of(function, [weights], [("x", jax.ShapeDtypeStruct((batch, 5), "float32"))], ["y"])
    sizes = [int(np.prod(x.dims)) for x in model.graph.initializer]
    assert sizes.count(25) == 1 and max(sizes) == 25
    assert sum(n.op_type == "MatMul" for n in model.graph.node) == 1
    assert not any(n.op_type == "Sin" for n in model.graph.node)
