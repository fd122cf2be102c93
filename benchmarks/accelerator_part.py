"""A part of accelerator.py in a process of its own: the device and the heads, or the steps of some models."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

import accelerator_heads
import accelerator_steps
import accelerator_table
import jax
import step as step_benchmark
from accelerator import BATCHES, parser
from compile_time import model_config
from network_floor import Rates, measure_rates

import kpjax
from kpjax.errors import UserError
from kpjax.parallel.compiling import keep_compiled
from kpjax.parallel.startup import skip_absent_tpu


def device_part(args: argparse.Namespace) -> int:
    """The device's name and rates, and the heads.  Rows: {"device": ..., "rates": ...}, and one for each model."""
    device = jax.devices()[0]
    if device.platform == "cpu" and not (args.tiny or args.cpu):
        print("error: JAX finds no accelerator; --tiny tries the command here, --cpu measures a CPU", file=sys.stderr)
        return 2
    end = time.monotonic() + args.seconds
    rates = measure_rates(args.dtype, args.tiny)
    _append(args.rows, {"machine": step_benchmark.machine(1), "rates": dataclasses.asdict(rates)})
    size = ", tiny" if args.tiny else ""
    print(
        f"{args.dtype}{size}; {device.device_kind}, {os.cpu_count()} CPUs, jax {jax.__version__}; "
        f"a matrix product {rates.flops / 1e12:.3g} TFLOP/s, a copy {rates.bytes / 1e9:.4g} GB/s",
        flush=True,
    )
    if args.no_heads:
        return 0
    rows = accelerator_heads.compare(
        args.heads or kpjax.list_models(),
        accelerator_heads.read_stored(),
        lambda: time.monotonic() < end,
        lambda row: _append(args.rows, row),
    )
    return 0 if all(row["passed"] for row in rows) else 1


def steps_part(args: argparse.Namespace) -> int:
    """The rows of one model's steps."""
    rates = Rates(*args.rates) if args.rates else measure_rates(args.dtype, args.tiny)
    # A CPU's memory is the host's, which no step should fill.
    on_cpu = jax.devices()[0].platform == "cpu"
    args.batches = args.batches or ([1, 2] if args.tiny else [1] if on_cpu else BATCHES)
    printed: set[int] = set()

    def report(row: dict[str, Any]) -> None:
        if id(row) not in printed:
            print(accelerator_table.line(row), flush=True)
            printed.add(id(row))
        _append(args.rows, row)

    for name in args.models:
        accelerator_steps.measure_model(name, rates, args, report)
    return 0


def _append(path: str | None, row: dict[str, Any]) -> None:
    """A line of JSON more."""
    if path:
        with open(path, "a", encoding="utf-8") as file:
            print(json.dumps(row), file=file)


def main(arguments: Sequence[str] | None = None) -> int:
    """Do the part that --part names; accelerator.py has the options."""
    args = parser().parse_args(arguments)
    skip_absent_tpu()
    keep_compiled()
    try:
        for name in (*args.models, *(args.heads or ())):
            model_config(name, 1, args.dtype, args.tiny)
        if args.part == "write":
            accelerator_heads.write()
            return 0
        return device_part(args) if args.part == "device" else steps_part(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
