"""Corner pooling by four forms, forward and backward: the figures behind kpjax/nn/pooling.py.

    python benchmarks/corner_pool.py [--shape 8,128,128,256] [--rounds 5] [--json OUT.json]

Forms: what kpjax uses (`associative_scan` of the maximum, a bit a cell kept for the backward pass), the same scan
differentiated plainly, `lax.cummax`, and a `lax.scan` over the rows.  All give the same values; plain
differentiation shares the gradient of ties differently.  Each program is compiled before it is timed; rounds
alternate; the figures are medians.  Memory is that of the compiled program's temporaries.
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

from kpjax.nn.pooling import DIRECTIONS, corner_pool

Array = jax.Array


def plain(x: Array, direction: str) -> Array:
    axis, reverse = DIRECTIONS[direction]
    return lax.associative_scan(jnp.maximum, x, axis=axis, reverse=reverse)


def cummax(x: Array, direction: str) -> Array:
    axis, reverse = DIRECTIONS[direction]
    return lax.cummax(x, axis=axis, reverse=reverse)


def rows(x: Array, direction: str) -> Array:
    axis, reverse = DIRECTIONS[direction]

    def step(best: Array, row: Array) -> tuple[Array, Array]:
        best = jnp.maximum(best, row)
        return best, best

    lines = jnp.moveaxis(x, axis, 0)
    _, y = lax.scan(step, jnp.full_like(lines[0], -jnp.inf), lines, reverse=reverse)
    return jnp.moveaxis(y, 0, axis)


FORMS: dict[str, Callable[[Array, str], Array]] = {
    "kpjax": corner_pool,
    "plain associative_scan": plain,
    "lax.cummax": cummax,
    "lax.scan": rows,
}


def program(form: Callable[[Array, str], Array], direction: str, x: Array, gradient: bool) -> tuple[Any, int | None]:
    """The compiled form, called without arguments, and the bytes of its temporaries."""

    def run(x: Array) -> Any:
        if not gradient:
            return form(x, direction)
        y, pull = jax.vjp(lambda x: form(x, direction), x)
        return y, pull(y)[0]

    executable = jax.jit(run).lower(x).compile()
    memory = executable.memory_analysis()
    return lambda: executable(x), None if memory is None else memory.temp_size_in_bytes


def main() -> int:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="8,128,128,256", help="B,h,w,C")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", help="write the figures here")
    args = parser.parse_args()
    shape = tuple(int(n) for n in args.shape.split(","))
    device = jax.devices()[0]
    print(
        f"{device.device_kind}, {os.cpu_count()} CPUs, jax {jax.__version__}, {args.shape}; ms and MiB of temporaries"
    )
    print(f"{'':34}" + "".join(f"{name:>28}" for name in FORMS))
    table = []
    for dtype in (jnp.float32, jnp.bfloat16):
        x = jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32), dtype)
        for direction in ("top", "left"):
            for gradient in (False, True):
                programs = {name: program(form, direction, x, gradient) for name, form in FORMS.items()}
                values = [jax.tree.leaves(run())[0] for run, _ in programs.values()]  # the first calls warm up
                assert all(bool((v == values[0]).all()) for v in values), "the forms disagree"
                del values
                seconds: dict[str, list[float]] = {name: [] for name in FORMS}
                for _ in range(args.rounds):
                    for name, (run, _) in programs.items():
                        start = time.perf_counter()
                        jax.block_until_ready(run())
                        seconds[name].append(time.perf_counter() - start)
                title = f"{jnp.dtype(dtype).name} {direction} {'with gradient' if gradient else 'forward'}"
                cells, row = [], {"name": title}
                for name, (_, memory) in programs.items():
                    middle = statistics.median(seconds[name])
                    cells.append(f"{1e3 * middle:.1f} / " + ("-" if memory is None else f"{memory / 2**20:.0f}"))
                    row[name] = {"seconds": middle, "rounds": seconds[name], "temporary_bytes": memory}
                print(f"{title:34}" + "".join(f"{cell:>28}" for cell in cells), flush=True)
                table.append(row)
    if args.json:
        machine = {"device": device.device_kind, "host": platform.machine(), "cpus": os.cpu_count()}
        settings = {"shape": shape, "rounds": args.rounds}
        result = {"benchmark": "corner_pool", "machine": machine, "jax": jax.__version__, "settings": settings}
        pathlib.Path(args.json).write_text(json.dumps(result | {"rows": table}, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
