"""Where a training step's time goes: the profiler's time of each operation, summed by part of the network.

    python benchmarks/profile_step.py --config configs/bccd_r18.py --classes 3

One step on a random batch in memory, after a warm-up.  On a CPU operations overlap, so the sums exceed the
step's own time; their proportions say where to look.
"""

from __future__ import annotations

import argparse
import collections
import glob
import gzip
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Container
from typing import Any

import jax
import step as step_benchmark

from kpjax.errors import UserError
from kpjax.parallel.compiling import compiler_options
from kpjax.parallel.sharding import make_mesh, put_batch
from kpjax.training.step import init_state, make_step


def operation_names(text: str) -> dict[str, str]:
    """Instruction name -> the source operation that it, or the first named one inside its fusion, came from."""
    inside: dict[str, str] = {}
    names: dict[str, str] = {}
    computation = ""
    for line in text.splitlines():
        head = re.match(r"(?:ENTRY )?%?([\w.\-]+) .*\{$", line)
        if head:
            computation = head.group(1)
        source = re.search(r'op_name="([^"]*)"', line)
        if source and "CenterNet" in source.group(1):
            inside.setdefault(computation, source.group(1))
        instruction = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = ", line)
        if instruction:
            called = re.search(r"calls=%?([\w.\-]+)", line)
            own = source.group(1) if source else ""
            names[instruction.group(1)] = own or inside.get(called.group(1) if called else "", "")
    return names


def operation_times(run: Callable[[], Any], folder: str, names: Container[str]) -> collections.Counter[str]:
    """Milliseconds of each instruction of `names` in one profiled run, which leaves its trace in `folder`."""
    with jax.profiler.trace(folder):
        jax.block_until_ready(run())
    traces = glob.glob(os.path.join(folder, "**", "*.trace.json.gz"), recursive=True)
    with gzip.open(max(traces, key=os.path.getmtime)) as stream:
        events = json.load(stream)["traceEvents"]
    spent: collections.Counter[str] = collections.Counter()
    for event in events:
        # A GPU's events are named for kernels, and say which instruction of XLA's they belong to.
        name = event.get("args", {}).get("hlo_op", event.get("name"))
        if event.get("ph") == "X" and name in names:
            spent[name] += event["dur"] / 1e3
    return spent


def part(source: str) -> tuple[str, str]:
    """("backward", "backbone/neck/deconv3") of an operation's name."""
    if "CenterNet)" not in source:
        return "other", "augmentation, targets, loss, optimiser"
    direction = "backward" if "transpose(jvp(" in source else "forward"
    inner = source.split("CenterNet)", 1)[1].strip(")/").split("/")
    depth = 1 if inner[0] == "heads" else 3
    return direction, "/".join(inner[:depth])


def main() -> int:
    """Profile one step and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--top", type=int, default=16, help="rows")
    args, overrides = parser.parse_known_args()
    from kpjax.commands.flags import config_of  # imports ml_collections, which accelerator.py does without

    try:
        config = config_of(args.config, overrides)
        detector = step_benchmark.from_config(config, config.model.num_classes or args.classes)
        mesh = make_mesh()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    state = init_state(detector, config, 1000, jax.random.key(0))
    batch = put_batch(step_benchmark.random_batch(config, detector.num_classes), mesh)
    compiled = (
        jax.jit(make_step(detector, config, 1000), compiler_options=compiler_options(mesh))
        .lower(state, batch)
        .compile()
    )
    jax.block_until_ready(compiled(state, batch))
    names = operation_names(compiled.as_text())
    spent: collections.Counter[tuple[str, str]] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        for name, ms in operation_times(lambda: compiled(state, batch), folder, names).items():
            spent[part(names[name])] += ms
    total = sum(spent.values())
    print(f"{os.path.basename(args.config)}, batch {config.batch}: {total:.0f} ms of operations in one step")
    for (direction, where), ms in spent.most_common(args.top):
        print(f"{ms:8.0f} ms {100 * ms / total:5.1f}%  {direction:8s}  {where}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
