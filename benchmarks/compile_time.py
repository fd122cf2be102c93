"""Compile time of each model's training step, and how much of it a second start saves by the persistent cache.

    python benchmarks/compile_time.py                     every model, full size
    python benchmarks/compile_time.py --models centernet_r18,cornernet_hg104 --dtype bfloat16 --json compile.json
    python benchmarks/compile_time.py --tiny              narrow networks at 64 pixels: a check

Each start is a process of its own, as in a run that was stopped; both use the same new, empty cache.  "trace" is Python
building the program and its lowering to StableHLO, which no cache saves; "compile" is XLA, or reading from the cache.
The whole step of train.py is compiled; nothing is run.  Exits with 1 where a second start compiled again, or was not at
least five times faster at it than the first.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from typing import Any

LEAST_RATIO = 5  # of the first compilation's time to the second's
HOURGLASS = {"features": (8, 8, 8), "blocks": (1, 1, 1), "stem": 8, "stacks": 1, "head_channels": 8}


def model_config(name: str, batch: int, dtype: str, tiny: bool) -> Any:
    """A run of `name` at the size it was published with, or a narrow network at 64 pixels."""
    import kpjax
    from kpjax.config import Config

    config = Config(batch=batch, steps=1000)
    config.model.name, config.model.num_classes, config.model.dtype = name, 80, dtype
    hourglass = "_hg" in name
    side = (64 if tiny else 512) - kpjax.build(name, 1).less
    config.augment.height = config.augment.width = side
    config.eval.resolution = "fixed"  # what TTFNet takes; only training is compiled
    if tiny:
        config.model.num_classes, config.data.canvas, config.data.max_boxes = 3, 64, 4
        config.model.options = {"width": 8, "head_channels": 8}
        if hourglass:
            config.model.options = dict(HOURGLASS) if name.startswith("centernet") else {**HOURGLASS, "branch": 8}
        elif "dla" not in name:
            config.model.options["deconv"] = (8, 8, 8)
    return config.check()


def one_start(name: str, batch: int, dtype: str, tiny: bool) -> dict[str, Any]:
    """Trace and compile in this process; needs the cache's folder in the environment."""
    import jax

    from kpjax.detectors import from_config
    from kpjax.parallel.compiling import keep_compiled
    from kpjax.parallel.sharding import make_mesh
    from kpjax.training.step import batch_shapes, init_state, jit_step, make_step

    events: list[str] = []
    jax.monitoring.register_event_listener(lambda event, **_: events.append(event.rsplit("/", 1)[-1]))
    keep_compiled()
    config = model_config(name, batch, dtype, tiny)
    detector, mesh = from_config(config, config.model.num_classes), make_mesh()
    device = jax.devices()[0].device_kind
    began = time.perf_counter()
    state = jax.eval_shape(lambda key: init_state(detector, config, config.steps, key), jax.random.key(0))
    lowered = jit_step(make_step(detector, config, config.steps, mesh), mesh, state).lower(
        state, batch_shapes(config, detector)
    )
    traced = time.perf_counter()
    lowered.compile()
    compiled = time.perf_counter()
    return {
        "trace_s": traced - began,
        "compile_s": compiled - traced,
        "from_cache": "cache_hits" in events,
        "device": device,
        "jax": jax.__version__,
    }


def start(name: str, args: argparse.Namespace, cache: str) -> dict[str, Any]:
    """`one_start` in a process of its own, with its whole time from start to end."""
    command = [sys.executable, __file__, "--one", name, "--batch", str(args.batch), "--dtype", args.dtype]
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache}
    began = time.perf_counter()
    done = subprocess.run(
        command + ["--tiny"] * args.tiny, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return {**json.loads(done.stdout.splitlines()[-1]), "process_s": time.perf_counter() - began}


def main() -> int:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="", help="names, with commas between them (default: all)")
    parser.add_argument("--batch", type=int, default=8, help="images a step (default 8)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--tiny", action="store_true", help="narrow networks at 64 pixels")
    parser.add_argument("--json", help="write the figures here")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one_start(args.one, args.batch, args.dtype, args.tiny)))
        return 0
    from kpjax.detectors import list_models

    names = args.models.split(",") if args.models else list_models()
    if unknown := sorted(set(names) - set(list_models())):
        print(f"error: --models: no model {unknown[0]!r}; choose among {', '.join(list_models())}", file=sys.stderr)
        return 2
    print(
        f"batch {args.batch}, {args.dtype}{', tiny' if args.tiny else ''}; seconds, {os.cpu_count()} CPUs", flush=True
    )
    header = ("trace", "compile", "again", "ratio", "start", "second", "ratio")
    print(f"{'model':26}" + "".join(f"{h:>9}" for h in header), flush=True)
    results: dict[str, Any] = {}
    for name in names:
        with tempfile.TemporaryDirectory() as cache:
            first, second = start(name, args, cache), start(name, args, cache)
        ratios = [first[part] / second[part] for part in ("compile_s", "process_s")]
        results[name] = {"first": first, "second": second, "compile_ratio": ratios[0], "start_ratio": ratios[1]}
        cells = (
            *(first["trace_s"], first["compile_s"], second["compile_s"], ratios[0]),
            *(first["process_s"], second["process_s"], ratios[1]),
        )
        print(f"{name:26}" + "".join(f"{cell:9.1f}" for cell in cells), flush=True)
    if args.json:
        machine = {"host": platform.machine(), "cpus": os.cpu_count(), "device": first["device"], "jax": first["jax"]}
        settings = {"batch": args.batch, "dtype": args.dtype, "tiny": args.tiny}
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(
                {"benchmark": "compile_time", "machine": machine, "settings": settings, "results": results},
                file,
                indent=1,
            )
    saved = all(
        r["second"]["from_cache"] and not r["first"]["from_cache"] and r["compile_ratio"] >= LEAST_RATIO
        for r in results.values()
    )
    return 0 if saved else 1


if __name__ == "__main__":
    sys.exit(main())
