"""Peak memory of a training step on TPUs, from compiling it ahead of time on this machine: no TPU is needed.

    python benchmarks/tpu_memory.py --config configs/coco_dla34_1x.py --batch 16
    python benchmarks/tpu_memory.py --config configs/coco_dla34_1x.py --topology v5e:4x4 --batch 128 \\
        --config.model.dtype=bfloat16

libtpu compiles for a TPU wherever it is installed (`pip install 'kpjax[tpu]'`, best in an environment of its own:
with it, every start of JAX prints warnings).  The whole step of train.py is compiled: augmentation, targets,
forward, backward, update, the state donated.  The peak is what the compiler reports for one device:
arguments, temporaries and outputs that share no memory with arguments.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys
import time

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # before JAX looks for a TPU to ask about
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import step as step_benchmark
from jax.experimental import topologies

from kpjax.detectors import from_config
from kpjax.errors import UserError
from kpjax.sharding import check_batch, make_mesh
from kpjax.train_step import init_state, jit_step, make_step

MEMORY = {"v4": 32, "v5e": 16, "v5p": 95, "v6e": 32}  # GiB a device


def main() -> int:
    """Compile, print, write JSON; exits 1 where the step does not fit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="a file of configs/; any setting: --config.key=value")
    parser.add_argument("--batch", type=int, default=0, help="images a step over all devices (0: the configuration's)")
    parser.add_argument(
        "--topology", default="v5e:1x1", help="kind of TPU and chips, e.g. v5e:1x1, v5e:16x16, v4:2x2x1"
    )
    parser.add_argument("--classes", type=int, default=80, help="where the configuration leaves it to the data")
    parser.add_argument("--json", help="write the figures here")
    args, overrides = parser.parse_known_args()
    try:
        config = step_benchmark.read_config(args.config, overrides)
        if args.batch:
            config.batch = args.batch
            config.check()
        devices = topologies.get_topology_desc(platform="tpu", topology_name=args.topology).devices
        mesh = make_mesh(config.sharding.fsdp, devices)
        check_batch(config.batch // config.optim.accumulate, mesh, "the batch")
        detector = from_config(config, config.model.num_classes or args.classes)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    steps = 1000
    state = jax.eval_shape(lambda key: init_state(detector, config, steps, key), jax.random.key(0))
    batch = {
        key: jax.ShapeDtypeStruct(array.shape, array.dtype)
        for key, array in step_benchmark.random_batch(config, detector.num_classes).items()
    }
    lowered = jit_step(make_step(detector, config, steps, mesh), mesh, state).lower(state, batch)
    start = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    cost = compiled.cost_analysis() or {}
    peak = (
        memory.argument_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
    )
    available = MEMORY.get(args.topology.split(":")[0])
    name = pathlib.Path(args.config).stem
    print(
        f"{name}: {detector.name}, {config.augment.width}x{config.augment.height}, batch {config.batch}, "
        f"{config.model.dtype}, remat {config.model.remat}, accumulate {config.optim.accumulate}; "
        f"{len(devices)} x {args.topology.split(':')[0]}, jax {jax.__version__}"
    )
    parts = {"arguments": memory.argument_size_in_bytes, "temporaries": memory.temp_size_in_bytes}
    print(
        f"peak {peak / 2**30:.2f} GiB a device{f' of {available}' if available else ''} ("
        + ", ".join(f"{part} {size / 2**30:.2f}" for part, size in parts.items())
        + f"); {cost.get('flops', 0) / 1e12:.2f} TFLOP, {cost.get('bytes accessed', 0) / 2**30:.1f} GiB moved a step; "
        f"compiled in {seconds:.0f} s"
    )
    if args.json:
        result = {
            "benchmark": "tpu_memory",
            "config": name,
            "overrides": overrides,
            "batch": config.batch,
            "topology": args.topology,
            "peak_bytes": peak,
            "argument_bytes": memory.argument_size_in_bytes,
            "temporary_bytes": memory.temp_size_in_bytes,
            "flops": cost.get("flops"),
            "bytes_accessed": cost.get("bytes accessed"),
            "compile_s": seconds,
            "jax": jax.__version__,
        }
        pathlib.Path(args.json).write_text(json.dumps(result, indent=1), encoding="utf-8")
    return 0 if available is None or peak <= available * 2**30 else 1


if __name__ == "__main__":
    sys.exit(main())
