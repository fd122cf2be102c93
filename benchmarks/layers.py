"""The CPU's forms of some operations against their usual forms: the figures behind kpjax/nn/layers.py.

    python benchmarks/layers.py [--scale 0.25] [--json OUT.json]

Each row is one program, compiled before it is timed: forward alone, or forward with the gradients of
all inputs.  Both forms' outputs are compared first.  Rounds alternate; the figures are medians.
At the full scale one round takes about a minute on two cores, nearly all of it in the usual form of the
transposed convolution; --scale shrinks the channels.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from kpjax.nn import convolution, layers
from kpjax.ops import peaks

Array = jax.Array
Function = Callable[..., Any]


@dataclasses.dataclass
class Comparison:
    """One row.  usual, ours: functions of `inputs`.  gradients: time the backward pass too."""

    name: str
    usual: Function
    ours: Function
    inputs: tuple[Array, ...]
    gradients: bool


def usual_convolution(x: Array, kernel: Array) -> Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), [(1, 1), (1, 1)], dimension_numbers=layers.NHWC)


def usual_peak_pool(x: Array) -> Array:
    return nn.max_pool(x, (3, 3), (1, 1), [(1, 1), (1, 1)])


def comparisons(scale: float) -> list[Comparison]:
    """The rows, their channels multiplied by `scale`."""
    rng = np.random.default_rng(0)

    def array(*shape: int) -> Array:
        return jnp.asarray(rng.standard_normal(shape, np.float32))

    def channels(count: int) -> int:
        return max(8, int(count * scale))

    c256, c192, c80, c64 = (channels(c) for c in (256, 192, 80, 64))
    deconv = array(8, 32, 32, c256), array(4, 4, c256, c256)
    phases, dilated = layers._conv_transpose_phases, layers._conv_transpose_dilated
    return [
        Comparison(
            f"conv 3x3, 8x64x64x{c256} -> {c192}, with gradients (Winograd)",
            usual_convolution,
            lambda x, k: layers.conv2d(x, k, 1, ((1, 1), (1, 1))),
            (array(8, 64, 64, c256), array(3, 3, c256, c192)),
            True,
        ),
        # All channels computed and some left out, against only the rest computed: XLA computes 128 at a time.
        *(
            Comparison(
                f"conv 3x3, 64x64x{c256} -> {more}, then {less} of them; -> {less}",
                lambda x, k, n=less: usual_convolution(x, k)[..., :n],
                lambda x, k, n=less: usual_convolution(x, k[..., :n]),
                (array(1, 64, 64, c256), array(3, 3, c256, more)),
                False,
            )
            for less, more in ((c64, channels(128)), (c192, c256))
        ),
        Comparison(
            f"conv 3x3, 128x128x{c256} -> {c256} (Winograd)",
            usual_convolution,
            lambda x, k: convolution._conv_winograd(x, convolution._winograd_kernels(k)),
            (array(1, 128, 128, c256), array(3, 3, c256, c256)),
            False,
        ),
        Comparison(f"transposed conv 4x4, 8x32x32x{c256} -> {c256}", dilated, phases, deconv, False),
        Comparison(f"transposed conv 4x4, 8x32x32x{c256} -> {c256}, with gradients", dilated, phases, deconv, True),
        Comparison(
            f"peak test's max-pool 3x3, 8x128x128x{c80}",
            usual_peak_pool,
            peaks.max_pool_3x3,
            (array(8, 128, 128, c80),),
            False,
        ),
    ]


def program(function: Function, row: Comparison) -> Callable[[], Any]:
    """The compiled form, called without arguments."""

    def run(*inputs: Array) -> Any:
        if not row.gradients:
            return function(*inputs)
        y, pull = jax.vjp(function, *inputs)
        return y, pull(y)

    executable = jax.jit(run).lower(*row.inputs).compile()
    return lambda: executable(*row.inputs)


def difference(a: Any, b: Any) -> float:
    """The largest difference of two results, in units of the largest value of each array."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(jnp.abs(x - y).max() / jnp.abs(y).max()) for x, y in pairs)


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def main() -> int:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="factor of the channels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", help="write the figures here")
    args = parser.parse_args()
    device = jax.devices()[0]
    print(f"{device.device_kind}, {os.cpu_count()} CPUs, jax {jax.__version__}; the CPU's form is used on CPUs alone")
    print(f"{'':66}{'usual ms':>10}{'CPU form':>10}{'ratio':>8}{'differ':>10}")
    rows = []
    for row in comparisons(args.scale):
        usual, ours = program(row.usual, row), program(row.ours, row)
        error = difference(ours(), usual())  # the first calls warm up
        measured = [(seconds(usual), seconds(ours)) for _ in range(args.rounds)]
        slow, fast = (statistics.median(m[i] for m in measured) for i in (0, 1))
        print(f"{row.name:66}{1e3 * slow:10.1f}{1e3 * fast:10.1f}{slow / fast:8.2f}{error:10.1e}", flush=True)
        rows.append({"name": row.name, "usual_s": slow, "cpu_form_s": fast, "difference": error, "rounds": measured})
    if args.json:
        machine = {"device": device.device_kind, "host": platform.machine(), "cpus": os.cpu_count()}
        settings = {"scale": args.scale, "rounds": args.rounds}
        result = {"benchmark": "layers", "machine": machine, "jax": jax.__version__, "settings": settings, "rows": rows}
        pathlib.Path(args.json).write_text(json.dumps(result, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
