"""Forms of deformable convolution against each other and against what the machine could do at best.

    python benchmarks/deform_conv.py [--scale 0.5] [--rounds 5] [--json OUT.json]

For each of DLA-34's shapes at 512x512 pixels: forward alone, and forward with the gradients of input, offsets,
mask and kernel.  The forms are compiled, compared with the first one's results, then timed in turns; figures are
medians.  All read the output of a normalisation and ReLU and feed another, as in a network: XLA may fuse with both.

  four gathers   kpjax/nn/deform_conv.py: four gathers into columns, one product, in slabs of rows
  one slab       the same without slabs
  autodiff       the same, gradients left to JAX
  packed         one gather of the four neighbours, packed side by side in an array of four times the size
  by tap         the four gathers and a product for each tap, nine products summed

The floor is the larger of two times.  FLOPs: the products' (2 B h w K C O forward, three times that with gradients)
at the rate of an ordinary 3x3 convolution of the same shape, forward.  Bytes: columns written and read once (and
once more each for their gradient and their second use), input, output and parameters once, at the rate of a copy.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from kpjax.nn import deform_conv as module
from kpjax.nn.deform_conv import deform_conv
from kpjax.nn.layers import NHWC

Array = jax.Array
Function = Callable[..., Any]

# batch, side of the map, C, O: a node and a projection of the neck at stride 4 and 8, the widest, and a batch
SHAPES = ((1, 128, 64, 64), (1, 64, 128, 64), (1, 32, 256, 128), (1, 16, 512, 256), (8, 32, 64, 64))
GEOMETRY = module._Geometry((3, 3), 1, 1, 1, 1, 1, 1, 1, None)


def corners(offset: Array, mask: Array, x: Array) -> tuple[list[Array], list[Array]]:
    weights, (index, _) = module._corners(offset, mask, x.shape[1:3], GEOMETRY)
    return weights, index


def autodiff(x: Array, offset: Array, mask: Array, kernel: Array) -> Array:
    weights, index = corners(offset, mask, x)
    columns = module._columns(module._rows(x, GEOMETRY), weights, index, x.shape[2])
    return (columns @ kernel.reshape(-1, kernel.shape[-1])).reshape(*x.shape[:3], -1)


def packed(x: Array, offset: Array, mask: Array, kernel: Array) -> Array:
    """Row r of the packed array holds cells r, r + 1, r + W, r + W + 1 of a map with a border of zeros."""
    batch, height, width, channels = x.shape
    y, x_, weights = positions(offset, mask, height, width)
    bordered = jnp.pad(x, ((0, 0), (1, 2), (1, 2), (0, 0)))
    views = [bordered[:, a : a + height + 2, b : b + width + 2] for a in (0, 1) for b in (0, 1)]
    rows = jnp.concatenate(views, axis=-1).reshape(batch, -1, 4 * channels)
    index = (y + 1) * (width + 2) + x_ + 1
    taken = module._take(rows, index).reshape(*index.shape, 4, channels)
    columns = (taken * weights[..., None]).sum(-2).reshape(batch * height * width, -1)
    return (columns @ kernel.reshape(-1, kernel.shape[-1])).reshape(batch, height, width, -1)


def positions(offset: Array, mask: Array, height: int, width: int) -> tuple[Array, Array, Array]:
    """Upper left neighbour (-1 .. H, -1 .. W) and the four weights, (B, h, w * K) and (B, h, w * K, 4)."""
    offset = offset.reshape(*offset.shape[:2], -1, 2)
    tap_y, tap_x = (t.reshape(-1) - 1 for t in np.mgrid[:3, :3])
    y = jnp.clip(offset[..., 0] + np.arange(height)[:, None] + np.tile(tap_y, width), -1, height)
    x = jnp.clip(offset[..., 1] + (np.arange(width)[:, None] + tap_x).reshape(-1), -1, width)
    low_y, low_x = jnp.floor(y), jnp.floor(x)
    fy, fx = y - low_y, x - low_x
    weights = jnp.stack([(1 - fy) * (1 - fx), (1 - fy) * fx, fy * (1 - fx), fy * fx], axis=-1)
    return low_y.astype(jnp.int32), low_x.astype(jnp.int32), weights * mask.reshape(*y.shape, 1)


def by_tap(x: Array, offset: Array, mask: Array, kernel: Array) -> Array:
    batch, height, width, channels = x.shape
    weights, index = corners(offset, mask, x)
    rows = module._rows(x, GEOMETRY)
    out: Any = 0.0
    for tap in range(9):
        part = [[a.reshape(batch, height, width, 9)[..., tap] for a in arrays] for arrays in (weights, index)]
        out = out + module._columns(rows, part[0], part[1], width) @ kernel.reshape(9, channels, -1)[tap]
    return out.reshape(batch, height, width, -1)


FORMS: dict[str, Function] = {
    "four gathers": lambda x, o, m, k: deform_conv(x, o, m, k),
    "one slab": lambda x, o, m, k: deform_conv(x, o, m, k, slabs=1),
    "autodiff": autodiff,
    "packed": packed,
    "by tap": by_tap,
}


def program(form: Function, inputs: tuple[Array, ...], gradients: bool) -> Function:
    """The compiled form between two normalisations; called without arguments."""

    def network(x: Array, *others: Array) -> Array:
        scale = others[-1].mean((0, 1, 2))
        return jax.nn.relu(form(jax.nn.relu(x * 1.1 + 0.1), *others) * scale)

    def run(*inputs: Array) -> Any:
        if not gradients:
            return network(*inputs)
        y, pull = jax.vjp(network, *inputs)
        return y, pull(y)

    executable = jax.jit(run).lower(*inputs).compile()
    return lambda: executable(*inputs)


def seconds(run: Function, repeats: int = 1) -> float:
    """Seconds of one run, when `repeats` of them are started without waiting for each other."""
    start = time.perf_counter()
    for _ in range(repeats):
        last = run()
    jax.block_until_ready(last)
    return (time.perf_counter() - start) / repeats


def difference(a: Any, b: Any) -> float:
    """The largest difference of two results, in units of the largest value of each array."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(jnp.abs(x - y).max() / jnp.abs(y).max()) for x, y in pairs)


def copy_rate(side: int = 4096, repeats: int = 1) -> float:
    """Bytes a second of a copy of (side, side) float32 (64 MiB), read and write counted."""
    array = jnp.ones((side, side), jnp.float32)
    run = jax.jit(lambda a: a + 1).lower(array).compile()
    jax.block_until_ready(run(array))
    return 2 * array.nbytes / statistics.median(seconds(lambda: run(array), repeats) for _ in range(9))


def convolution_rate(x: Array, kernel: Array) -> float:
    """FLOP/s of the ordinary convolution of the same shape, forward."""
    convolve = jax.jit(lambda x, k: lax.conv_general_dilated(x, k, (1, 1), [(1, 1), (1, 1)], dimension_numbers=NHWC))
    run = convolve.lower(x, kernel).compile()
    jax.block_until_ready(run(x, kernel))
    return products(x, kernel) / statistics.median(seconds(lambda: run(x, kernel)) for _ in range(9))


def products(x: Array, kernel: Array) -> float:
    return 2.0 * x.shape[0] * x.shape[1] * x.shape[2] * kernel.size


def floor(x: Array, kernel: Array, gradients: bool, flops_per_s: float, bytes_per_s: float) -> float:
    """Seconds that no form can beat, by the rule in this file's docstring."""
    columns = 9 * x.nbytes
    ends = 2 * x.nbytes + kernel.nbytes + 27 * x.nbytes // x.shape[-1]
    flops, moved = products(x, kernel), 2 * columns + ends
    if gradients:  # columns again for the kernel's gradient; the columns' gradient written, read for x and weights
        flops, moved = 3 * flops, 2 * columns + 2 * columns + 2 * columns + 3 * ends
    return max(flops / flops_per_s, moved / bytes_per_s)


def main() -> int:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="factor of the maps' sides")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", help="write the figures here")
    args = parser.parse_args()
    device = jax.devices()[0]
    moved = copy_rate()
    print(f"{device.device_kind}, {os.cpu_count()} CPUs, jax {jax.__version__}; a copy moves {moved / 1e9:.1f} GB/s")
    print(f"{'ms':34}{'floor':>10}" + "".join(f"{name:>14}" for name in FORMS) + f"{'differ':>10}")
    rng = np.random.default_rng(0)
    rows = []
    for batch, full, channels, features in SHAPES:
        side = max(4, int(full * args.scale))
        cells = (batch, side, side)
        x = jnp.asarray(rng.standard_normal((*cells, channels), np.float32))
        offset = jnp.asarray(rng.normal(0, 1, (*cells, 18)).astype(np.float32))
        mask = jnp.asarray(rng.uniform(0, 1, (*cells, 9)).astype(np.float32))
        kernel = jnp.asarray(rng.standard_normal((3, 3, channels, features), np.float32) / (9 * channels) ** 0.5)
        rate = convolution_rate(x, kernel)
        for gradients in (False, True):
            programs = {name: program(form, (x, offset, mask, kernel), gradients) for name, form in FORMS.items()}
            results = {name: run() for name, run in programs.items()}  # warms up
            worst = max(difference(r, results["four gathers"]) for r in results.values())
            rounds = [{name: seconds(run) for name, run in programs.items()} for _ in range(args.rounds)]
            median = {name: statistics.median(r[name] for r in rounds) for name in FORMS}
            least = floor(x, kernel, gradients, rate, moved)
            name = f"{batch}x{side}x{side}x{channels} -> {features}{', gradients' if gradients else ''}"
            print(
                f"{name:34}{1e3 * least:10.1f}"
                + "".join(f"{1e3 * s:14.1f}" for s in median.values())
                + f"{worst:10.1e}",
                flush=True,
            )
            rows.append({"name": name, "floor_s": least, "seconds": median, "difference": worst, "rounds": rounds})
    if args.json:
        machine = {"device": device.device_kind, "host": platform.machine(), "cpus": os.cpu_count()}
        settings = {"scale": args.scale, "rounds": args.rounds}
        result = {"benchmark": "deform_conv", "machine": machine, "jax": jax.__version__, "settings": settings}
        pathlib.Path(args.json).write_text(json.dumps(result | {"rows": rows}, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
