"""What every recipe's programs ask of a GPU, compiled without one: memory, kernel launches, bytes, what looks wrong.

    python benchmarks/gpu_plan.py --cuda-library runs/cuda --json runs/gpu_plan.json
    python benchmarks/gpu_plan.py --recipes coco_r18 coco_dla34_1x --topologies h100:1 --json runs/gpu_plan.json
    python benchmarks/gpu_plan.py --json benchmarks/gpu_plan.json --before benchmarks/gpu_plan_before.json --print

Each plan is a process of its own (`python -m kpjax plan`; README.md says how to fetch the library), minutes long for
hourglasses.  Figures are written after each; the same command goes on where it stopped, and compiles again what another
state of kpjax/ gave, unless --keep.  Recipes that differ in data and schedule alone are one row.  Training batches are
those of the recipes, rounded down to a multiple of the GPUs, or --batch; BatchNorm has a group on each GPU where the
recipe's groups do not fit.  Tests have config.eval.batch images, one a GPU at least.  A cell reads
"batch: GiB a GPU, kernel launches, GiB moved, what looks odd", with --before "before › now".  --print compiles nothing.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import hashlib
import json
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
TOPOLOGIES = ("h100:1", "h100:8", "a100:8")
# First those that stand for a family; the rest in the order of their names.
MAIN = ("coco_r18", "coco_dla34_1x", "centernet_hg104", "cornernet_hg104", "triplet_hg104")
# What the plan calls odd, shortened; transposes of some megabytes are in nearly all programs and say little.
KINDS = {f"{one} of more than a million rows": f"large {one}" for one in ("scatter", "sort")}
KINDS["convolution in a form that cuDNN does not serve well"] = "convolution form"
SEEN_EVERYWHERE = ("large transpose",)


@dataclasses.dataclass(frozen=True)
class Program:
    """One program to compile.  recipes: the names of all whose program it is; the first one is compiled."""

    recipes: tuple[str, ...]
    topology: str
    evaluation: bool
    batch: int
    settings: tuple[str, ...]

    @property
    def key(self) -> str:
        """What its figures are kept under."""
        step = "test" if self.evaluation else "training"
        return " ".join((self.recipes[0], self.topology, step, f"batch={self.batch}", *self.settings))


def recipe(name: str) -> Any:
    """The configuration of configs/NAME.py."""
    return runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"]()


def programs(names: Sequence[str], topologies: Sequence[str], batch: int, settings: Sequence[str]) -> list[Program]:
    """All programs, those of `MAIN` first; recipes that differ in data and schedule alone share theirs."""
    found: dict[Any, list[str]] = collections.defaultdict(list)
    for name in sorted(names, key=lambda name: (name not in MAIN, MAIN.index(name) if name in MAIN else 0, name)):
        config = recipe(name)
        same = json.dumps(
            [dataclasses.asdict(part) for part in (config.model, config.augment, config.eval, config.sharding)]
            + [config.batch, config.optim.name, config.optim.accumulate, config.data.canvas, config.data.max_boxes],
            default=str,
        )
        found[same].append(name)
    result = []
    for shared in found.values():
        config = recipe(shared[0])
        for topology in topologies:
            size = gpus(topology)
            images, extra = batch or config.batch, list(settings)
            if images % size or images % config.model.bn_groups:
                images -= images % size
            images = max(images, size)
            groups = config.model.bn_groups
            if images % groups or (groups % size and size % groups):
                extra.append(f"--config.model.bn_groups={size}")
            result.append(Program(tuple(shared), topology, False, images, tuple(extra)))
            result.append(Program(tuple(shared), topology, True, max(config.eval.batch, size), tuple(settings)))
    return result


def gpus(topology: str) -> int:
    """How many GPUs "h100:8" and "h100:2x8" are."""
    size = 1
    for side in topology.partition(":")[2].split("x"):
        size *= int(side)
    return size


def compile_one(program: Program, library: str) -> dict[str, Any]:
    """The plan's figures, or {"error": its last line}."""
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder, "plan.json")
        command = [sys.executable, "-m", "kpjax", "plan", "--config", f"configs/{program.recipes[0]}.py"]
        command += ["--topology", program.topology, "--batch", str(program.batch), "--json", str(out)]
        command += ["--eval"] if program.evaluation else []
        command += ["--cuda-library", library] if library else []
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([*command, *program.settings], cwd=ROOT, env=environment, capture_output=True, text=True)
        if not out.exists():
            return {"error": (done.stderr or done.stdout).strip().splitlines()[-1]}
        plan = json.loads(out.read_text())
    return {
        "memory": plan["memory"]["total"],
        "fits": plan["fits"],
        "launches": plan["launches"]["step"],
        "in_loops": plan["launches"]["in_loops"],
        "moved": plan["bytes_moved"],
        "flops": plan["flops"],
        "roofline_s": plan["roofline_s"]["step"],
        "odd": dict(collections.Counter(one["kind"] for one in plan["odd"] for _ in range(one["times"]))),
        "compile_s": plan["compile_s"],
        "jax": plan["jax"],
    }


def state_of_kpjax() -> str:
    """A digest of the package's files."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "kpjax").rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def table(wanted: Sequence[Program], rows: dict[str, Any], before: dict[str, Any]) -> list[str]:
    """Lines of Markdown: one for each step of a recipe, a cell for each machine."""
    topologies = list(dict.fromkeys(program.topology for program in wanted))
    lines = [f"| recipe | step | {' | '.join(topologies)} |", "|---|---|" + "---|" * len(topologies)]
    cells: dict[tuple[tuple[str, ...], bool], dict[str, str]] = collections.defaultdict(dict)
    for program in wanted:
        row = rows.get(program.key)
        if row is not None:
            of_step = cells[program.recipes, program.evaluation]
            of_step[program.topology] = cell(program.batch, row, before.get(program.key, {}))
    for (recipes, evaluation), found in cells.items():
        names = ", ".join(f"`{name}`" for name in recipes)
        columns = " | ".join(found.get(topology, "") for topology in topologies)
        lines.append(f"| {names} | {'test' if evaluation else 'training'} | {columns} |")
    return lines


def cell(batch: int, row: dict[str, Any], old: dict[str, Any]) -> str:
    """batch: GiB a GPU, kernel launches, GiB moved, and what is odd; old: the figures to print before "›"."""
    if "error" in row:
        return f"{batch}: {row['error']}"

    def number(name: str, scale: float = 1.0, digits: int = 0) -> str:
        now = f"{row[name] / scale:,.{digits}f}"
        return f"{old[name] / scale:,.{digits}f} › {now}" if name in old else now

    moved = row["moved"] / 2**30
    parts = [number("memory", 2**30, 2), number("launches"), number("moved", 2**30, 1 if moved < 99.5 else 0)]
    if row["in_loops"] or old.get("in_loops"):
        parts.append(f"{number('in_loops')} in loops")
    if not row["fits"]:
        parts.append("**too much**")
    for kind in sorted({*row["odd"], *old.get("odd", {})} - set(SEEN_EVERYWHERE)):
        counts = [one["odd"].get(kind, 0) for one in (old, row) if "odd" in one]
        parts.append(f"{' › '.join(f'{count:,}' for count in counts)} {KINDS.get(kind, kind)}")
    return f"{batch}: {', '.join(parts)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile what is not there yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
    parser.add_argument("--recipes", nargs="+", default=every, choices=every, metavar="NAME")
    parser.add_argument("--topologies", nargs="+", default=list(TOPOLOGIES))
    parser.add_argument("--batch", type=int, default=0, help="images of a training step over all GPUs")
    parser.add_argument("--setting", action="append", default=[], metavar="--config.key=value", dest="settings")
    parser.add_argument("--cuda-library", default="", help="as of kpjax plan")
    parser.add_argument("--json", required=True, help="figures are kept here")
    parser.add_argument("--before", help="figures of another state of kpjax, to print beside")
    parser.add_argument("--keep", action="store_true", help="take the figures of another state of kpjax/ too")
    parser.add_argument("--print", action="store_true", help="compile nothing", dest="only_print")
    args = parser.parse_args(arguments)
    path, state = pathlib.Path(args.json), state_of_kpjax()
    rows = json.loads(path.read_text()) if path.exists() else {}
    before = json.loads(pathlib.Path(args.before).read_text()) if args.before else {}
    wanted = programs(args.recipes, args.topologies, args.batch, args.settings)
    for number, program in enumerate(wanted, 1):
        known = rows.get(program.key)
        if args.only_print or (known and "error" not in known and (args.keep or known["state"] == state)):
            continue
        rows[program.key] = compile_one(program, args.cuda_library) | {"state": state}
        part = path.with_name(path.name + ".part")
        part.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        part.replace(path)
        print(f"{number} of {len(wanted)}: {program.key}", flush=True)
    print("\n".join(table(wanted, rows, before)))
    return 1 if any("error" in rows.get(program.key, {}) for program in wanted) else 0


if __name__ == "__main__":
    sys.exit(main())
