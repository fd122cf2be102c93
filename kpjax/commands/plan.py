"""`kpjax plan`: memory, time and largest batch of a step on a TPU slice or GPUs, which need not be there."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import pathlib
from typing import Any

import jax

from kpjax.aot import gpu, tpu
from kpjax.aot.cuda_hlo import Oddity
from kpjax.aot.hlo import PURPOSES, Collective
from kpjax.aot.plan import Plan, Work, canvas_of, largest_batch, make_plan, smallest_step, with_batch
from kpjax.commands.flags import config_of
from kpjax.config import Config
from kpjax.detectors import from_config
from kpjax.detectors.base import check_size
from kpjax.errors import ConfigError
from kpjax.inference.program import protocol_of
from kpjax.training.sizes import at_width, sizes_of

EXAMPLES = (
    "kpjax plan --config cornernet_hg104 --topology v5e:16x16 --batch 256 --config.model.bn_groups=32",
    "kpjax plan --config coco_r18 --topology h100:8 --batch 112 --cuda-library runs/cuda",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.description = (
        "Compile the step of a configuration for a TPU slice or GPUs, without owning one, and say what it takes: "
        "memory a device, FLOPs, bytes, collectives, and the time of these at the device's published peaks; of GPUs "
        "also kernel launches and what looks wrong.  Nothing is run.  Exits with 1 where the step does not fit."
    )
    parser.add_argument(
        "--config", required=True, metavar="FILE", help="a recipe or a file; --config.key=value as usual"
    )
    parser.add_argument(
        "--topology",
        required=True,
        metavar="KIND:SHAPE",
        help=f"e.g. v5e:16x16, v4:2x2x1; GPUs ({', '.join(gpu.CARDS)}) as h100:8 or, hosts x GPUs, h100:2x8",
    )
    parser.add_argument(
        "--batch", type=int, default=0, help="images a step over all devices (default: the configuration's)"
    )
    parser.add_argument("--eval", action="store_true", help="the test-time program of config.eval instead of training")
    parser.add_argument(
        "--canvas", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="with --eval (default: of a 640x640 image)"
    )
    parser.add_argument(
        "--largest", action="store_true", help="look for the largest batch that fits: 2 to 5 compilations more"
    )
    parser.add_argument(
        "--classes", type=int, default=80, help="where the configuration leaves it to the data (default 80)"
    )
    parser.add_argument(
        "--libtpu", default="", metavar="PATH", help="libtpu.so or an environment that has it ($KPJAX_LIBTPU)"
    )
    parser.add_argument(
        "--cuda-library",
        default="",
        metavar="PATH",
        help="XLA's plugin for CUDA, or the folder that its wheel was put into ($KPJAX_CUDA_LIBRARY)",
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures here")
    parser.add_argument("--hlo", metavar="FILE", help="write the compiled program's text here")


def run(args: argparse.Namespace) -> int:
    """Compile and print.  Raises UserError for what cannot work."""
    on_gpus = args.topology.partition(":")[0] in gpu.CARDS
    topology = (gpu if on_gpus else tpu).parse_topology(args.topology)
    if args.batch < 0:
        raise ConfigError(f"--batch is {args.batch}; it must be at least 1")
    batch = [f"--config.{'eval.' if args.eval else ''}batch={args.batch}"] if args.batch else []
    config = config_of(args.config, [*args.settings, *batch])
    if args.canvas and not args.eval:
        raise ConfigError("--canvas is for --eval; training takes config.augment.height and width")
    detector = from_config(config, config.model.num_classes or args.classes)
    if args.eval:
        protocol_of(detector, config.eval.preset)
    if on_gpus:
        gpu.prepare(gpu.find_cuda_library(args.cuda_library))
    else:
        tpu.prepare(tpu.find_libtpu(args.libtpu))
    canvas = tuple(args.canvas) if args.canvas else canvas_of(detector, config)
    if args.eval:
        check_size(detector, canvas, "--canvas HEIGHT", "--canvas WIDTH")

    for option, path in (("--json", args.json), ("--hlo", args.hlo)):  # before minutes of compiling
        if path and not pathlib.Path(path).absolute().parent.is_dir():
            raise ConfigError(f"{option} {path}: its folder does not exist")

    def compiled(config: Config) -> Plan:
        return make_plan(topology, config, args.eval, canvas, args.classes)

    if not args.eval:
        config = at_width(config, sizes_of(config)[0])
    plan = compiled(config)
    print("\n".join(report(plan)), flush=True)
    if args.hlo:
        pathlib.Path(args.hlo).write_text(plan.text, encoding="utf-8")
    result = {"config": pathlib.Path(args.config).stem, "settings": args.settings, **as_json(plan)}
    if args.largest:
        unit = smallest_step(topology.size, config, args.eval)
        points = {plan.batch: plan.memory.total}

        def measure(batch: int) -> int:
            points[batch] = compiled(with_batch(config, batch, args.eval)).memory.total
            return points[batch]

        best = largest_batch(measure, unit, plan.batch, plan.memory.total, topology.chip.memory)
        result |= {"largest_batch": best, "memory_by_batch": points}
        tried = ", ".join(f"{batch}: {gib(points[batch])}" for batch in sorted(points))
        print(
            f"largest  {f'batch {best}' if best else 'none fits'}, of multiples of {unit}; "
            f"GiB a {topology.unit} by batch: {tried}"
        )
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0 if plan.fits else 1


def gib(size: float) -> str:
    """Bytes as GiB, e.g. "7.38"."""
    return f"{size / 2**30:.2f}"


def report(plan: Plan) -> list[str]:
    """The plan as lines of text."""
    config, topology, memory, work = plan.config, plan.topology, plan.memory, plan.work
    model, available, unit = config.model, topology.chip.memory, topology.unit
    height, width = plan.canvas if plan.evaluation else (config.augment.height, config.augment.width)
    what = f"test step, preset {config.eval.preset}, {model.dtype}"
    if not plan.evaluation:
        what = (
            f"training step, {model.dtype}, remat {'on' if model.remat else 'off'}, bn_groups {model.bn_groups}, "
            f"accumulate {config.optim.accumulate}, fsdp {config.sharding.fsdp}"
        )
        if config.augment.sizes:
            what += f"; the largest of {len(sizes_of(config))} sizes"
    room = available - memory.total
    verdict = (
        f"fits, {gib(room)} GiB ({room / available:.0%}) to spare" if plan.fits else f"does not fit: {gib(-room)} over"
    )
    lines = [
        f"model    {plan.detector.name}, {height}x{width}: {what}",
        f"{'slice' if unit == 'chip' else 'cards'}    {topology.name}, batch {plan.batch}, "
        f"{plan.batch / topology.size:g} images a {unit}",
        f"memory   {gib(memory.total)} GiB a {unit} of {gib(available)}: {verdict}",
    ]
    if topology.chip.kept:
        lines.append(f"         {topology.chip.kept}")
    if work is None:
        return [*lines, f"         the compiler refused it after {plan.seconds:.0f} s"]
    low, norms = work.roofline(topology), work.collectives["BatchNorm"]
    lines += [
        f"         arguments {gib(memory.arguments)}, temporaries {gib(memory.temporaries)}, outputs beside them "
        f"{gib(memory.outputs)}, program {gib(memory.code)}; compiled in {plan.seconds:.0f} s",
        f"work     {work.flops / 1e12:.3g} TFLOP and {gib(work.moved)} GiB moved, a {unit} and step"
        + (", or more: bodies of loops are counted once" if work.at_least else ""),
        *(launch_lines(work) if unit == "GPU" else []),
        *collective_lines(work.collectives, unit),
        f"roofline compute {1e3 * low.compute:.1f} ms, memory {1e3 * low.memory:.1f}, interconnect "
        f"{1e3 * low.interconnect:.1f}: {1e3 * low.seconds:.1f} ms a step, bound by {low.bottleneck}; "
        f"{plan.batch / max(low.seconds, 1e-9):,.0f} images/s",
    ]
    if norms:
        lines.append(
            f"hint     each of BatchNorm's {sum(one.times for one in norms)} sums waits for the layer before it; "
            f"config.model.bn_groups={topology.size} keeps statistics on a {unit} ({plan.batch / topology.size:g} "
            f"images), a divisor of it among few {unit}s"
        )
    if work.collectives["other"]:
        lines.append(
            'hint     "other" are activations or images of micro-batches, sent between '
            f"{unit}s; with fsdp 1 and accumulate 1 there are none"
        )
    return lines


def launch_lines(work: Work) -> list[str]:
    """Kernel launches of a GPU, and what looks wrong: a line each kind, with the heaviest."""
    lines = [f"launches {work.launches:,} a step, {work.in_loops:,} of them in loops"]
    kinds: dict[str, list[Oddity]] = collections.defaultdict(list)
    for one in work.odd:
        kinds[one.kind].append(one)
    for kind, found in kinds.items():
        times = sum(one.times for one in found)
        example = max(found, key=lambda one: one.times * one.size)
        scope = f" in {example.scope}" if example.scope else ""
        lines.append(f"odd      {times:,} x {kind}, e.g. {example.what}{scope}")
    return lines if kinds else [*lines, "odd      nothing"]


def collective_lines(collectives: dict[str, list[Collective]], unit: str = "chip") -> list[str]:
    """A line for each purpose, operation and group size: how many, and how much."""
    lines = []
    for purpose in PURPOSES:
        kinds = sorted({(one.op, one.group) for one in collectives[purpose]})
        for op, group in kinds:
            of_kind = [one for one in collectives[purpose] if (one.op, one.group) == (op, group)]
            count, size = sum(one.times for one in of_kind), sum(one.times * one.bytes for one in of_kind)
            largest = max(one.bytes for one in of_kind)
            each = "" if count == 1 else f", the largest {largest / 2**20:,.3g}"
            lines.append(
                f"         {purpose:17}  {count:5d} x {op} over {group} {unit}s, {size / 2**20:,.3g} MiB{each}"
            )
    if not lines:
        return [f"between  nothing is sent between {unit}s"]
    return [f"between {unit}s, a step:", *lines]


def as_json(plan: Plan) -> dict[str, Any]:
    """The figures by name; bytes, seconds."""
    config, work = plan.config, plan.work
    result: dict[str, Any] = {
        "command": "plan",
        "topology": plan.topology.name,
        "chips": plan.topology.size,
        "step": "test" if plan.evaluation else "training",
        "model": plan.detector.name,
        "batch": plan.batch,
        "canvas": list(plan.canvas) if plan.evaluation else [config.augment.height, config.augment.width],
        "model_settings": dataclasses.asdict(config.model),
        "accumulate": config.optim.accumulate,
        "fsdp": config.sharding.fsdp,
        "fits": plan.fits,
        "memory": {
            **dataclasses.asdict(plan.memory),
            "total": plan.memory.total,
            "available": plan.topology.chip.memory,
        },
        "compile_s": plan.seconds,
        "jax": jax.__version__,
    }
    if work is not None:
        low = work.roofline(plan.topology)
        on_gpu = {
            "flops_float32": work.float32,
            "launches": {"step": work.launches, "in_loops": work.in_loops},
            "odd": [dataclasses.asdict(one) for one in work.odd],
        }
        result |= on_gpu if plan.topology.platform == "cuda" else {}
        result |= {
            "flops": work.flops,
            "bytes_moved": work.moved,
            "loops_counted_once": work.at_least,
            "roofline_s": {**dataclasses.asdict(low), "step": low.seconds},
            "collectives": {
                purpose: [
                    {
                        "op": one.op,
                        "group": one.group,
                        "times": one.times,
                        "bytes": one.bytes,
                        "arrays": len(one.arrays),
                    }
                    for one in found
                ]
                for purpose, found in work.collectives.items()
            },
        }
    return result
