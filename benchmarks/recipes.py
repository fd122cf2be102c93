"""Which settings learn a data set best?  A table of them, each trained with several seeds for the same time or steps.

    python benchmarks/recipes.py --shapes --out runs/of_shapes --steps 1800
    python benchmarks/recipes.py --data photos --out runs/of_photos --minutes 25 --seeds 2
    python benchmarks/recipes.py --train DATA/images train.json --val DATA/images val.json --out runs/of_mine \\
        --minutes 25 --settings mine.py --only small own own_mosaic

The data are drawn shapes, a folder as `kpjax train --data` takes it, or two folders of images with their COCO files.
--settings names a Python file with settings(steps): name -> arguments of train.py, the base's --config=... first and
what differs from it after; recipe_settings.py if none is named.  Sizes come from the data, as `kpjax train --data`
chooses them, and are the same for all; --size is another.  A setting may still change any of it.

--minutes: how long the steps of each run take, start-up and evaluation not among them.  A short try of each setting
says how many steps that are, so a machine that does something else beside makes the figures worthless; there, give
--steps.  Both are printed.  Each run is a process of train.py, evaluated after its last step.

Finished runs are kept in OUT/runs.json, and the same command goes on with the others, and within one that was
interrupted.  A setting whose arguments have changed is refused: give it another name.  Figures are means over the
seeds, with the lowest and highest.  Exits with 1 where a run failed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import re
import runpy
import shutil
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from kpjax.checkpoint.scores import read_metrics
from kpjax.commands.flags import config_of
from kpjax.config import Config, SplitConfig, from_json
from kpjax.data.opening import open_source
from kpjax.errors import ConfigError, UserError
from kpjax.training.choices import Machine, Wishes, choose, facts_of, own_options

ROOT = pathlib.Path(__file__).parents[1]
SETTINGS = ROOT / "benchmarks" / "recipe_settings.py"
TRIED = 12  # steps of a try that measures the speed; the first ones do not count
ACCURACY = ("AP", "AP50", "APs", "APm", "APl")

Settings = Callable[[int], dict[str, list[str]]]


@dataclasses.dataclass
class Work:
    """What is run, where, and what is known already.

    data: arguments that say where the data are and how large.  limit: {"steps": n} or {"minutes": m}.
    known: the content of OUT/runs.json: "data" and "limit" as here; "tries", setting -> its arguments and the seconds
    a step; "runs", a list of figures.
    """

    out: pathlib.Path
    data: list[str]
    limit: dict[str, float]
    settings: Settings
    known: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        file = self.out / "runs.json"
        now = {"data": self.data, "limit": self.limit}
        self.known = json.loads(file.read_text()) if file.exists() else now | {"tries": {}, "runs": []}
        for what, value in now.items():
            if self.known[what] != value:
                raise ConfigError(f"{file} has other {what}: {self.known[what]}, now {value}; use another --out")

    def keep(self) -> None:
        """Write what is known, all of it or nothing."""
        part = self.out / "runs.json.part"
        part.write_text(json.dumps(self.known, indent=1))
        part.replace(self.out / "runs.json")

    def steps_of(self, name: str) -> int:
        """How many steps a setting gets; tries it where its speed is not known yet."""
        if "steps" in self.limit:
            return int(self.limit["steps"])
        arguments = self.settings(TRIED)[name]
        tried = self.known["tries"].get(name)
        if tried is None or tried["arguments"] != arguments:
            workdir = self.out / f"try-{name}"
            shutil.rmtree(workdir, ignore_errors=True)
            unseen = ["--config.data.val.images=", "--config.data.val.annotations="]
            train(workdir, [*self._whole(arguments, TRIED, 0), *unseen, "--config.log_every=1"])
            rates = [line["images_per_s"] for line in read_metrics(str(workdir)) if "images_per_s" in line]
            seconds = written_config(workdir).batch / statistics.median(rates[len(rates) // 3 :])
            self.known["tries"][name] = {"arguments": arguments, "seconds_a_step": seconds}
            self.keep()
            shutil.rmtree(workdir)
        steps = int(60 * self.limit["minutes"] / self.known["tries"][name]["seconds_a_step"])
        if steps < 2:
            raise ConfigError(f"--minutes {self.limit['minutes']:g} is less than two steps of {name}; give more")
        return steps

    def run(self, name: str, seed: int) -> dict[str, Any]:
        """The figures of one run, which is made, or gone on with, where it has not finished yet."""
        found = [run for run in self.known["runs"] if (run["setting"], run["seed"]) == (name, seed)]
        # With --minutes the speed is measured once: a later command uses the same number of steps.
        steps = found[0]["steps_given"] if found else self.steps_of(name)
        arguments = self.settings(steps)[name]
        if found:
            if found[0]["arguments"] != arguments:
                raise ConfigError(f"{name} has run with other arguments; give what is in --settings another name")
            return found[0]
        workdir = self.out / f"{name}-{seed}"
        train(workdir, self._whole(arguments, steps, seed))
        figures = figures_of(workdir) | {"setting": name, "seed": seed, "arguments": arguments, "steps_given": steps}
        self.known["runs"].append(figures)
        self.keep()
        shutil.rmtree(workdir / "checkpoints")  # the last weights are in `model`
        return figures

    def _whole(self, arguments: Sequence[str], steps: int, seed: int) -> list[str]:
        base, *changes = arguments
        run = [f"--config.steps={steps}", "--config.epochs=0", f"--config.seed={seed}", "--config.eval.every=0"]
        kept = ["--config.checkpoint.keep=1", f"--config.log_every={max(1, min(10, steps // 10))}"]
        return [base, *self.data, *run, *kept, *changes]


def train(workdir: pathlib.Path, arguments: Sequence[str]) -> None:
    """Run train.py to its end; what it says is added to WORKDIR.txt.  Raises UserError with its last line."""
    said = workdir.with_name(workdir.name + ".txt")
    command = [sys.executable, "train.py", *arguments, "--workdir", str(workdir), "--noreport"]
    with said.open("a") as file:
        print("$", *command, file=file, flush=True)
        # In a group of its own, so that Ctrl-C reaches it once, from here: it saves where it stands.
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, process_group=0)
        try:
            code = process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if code:
        raise UserError(f"train.py left with {code}: {said.read_text().strip().splitlines()[-1]}  (all in {said})")


def written_config(workdir: pathlib.Path) -> Config:
    """The whole configuration of a run."""
    return from_json((workdir / "config.json").read_text())


def figures_of(workdir: pathlib.Path) -> dict[str, Any]:
    """What a finished run reached and took: AP and its like, "images_per_s", "steps" and the "minutes" of these."""
    lines, config = read_metrics(str(workdir)), written_config(workdir)
    last = [line for line in lines if line["kind"] == "eval"][-1]
    # Each line is of as many steps, so that the mean of seconds an image is that of the run.
    pace = statistics.fmean(1 / line["images_per_s"] for line in lines if "images_per_s" in line)
    minutes = last["step"] * config.batch * pace / 60
    return {key: last[key] for key in ACCURACY} | {"images_per_s": 1 / pace, "steps": last["step"], "minutes": minutes}


def cell(values: Sequence[float], form: str) -> str:
    """Mean, and the lowest and highest where they differ: "0.489 (0.485-0.493)"; "-" where COCO says -1."""
    if min(values) < 0:
        return "-"
    mean, low, high = (format(v, form) for v in (statistics.fmean(values), min(values), max(values)))
    return mean if low == high else f"{mean} ({low}-{high})"


def table(runs: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """A Markdown table, a line for each setting that has run."""
    columns = [(key, key, ".3f") for key in ACCURACY]
    columns += [("images/s", "images_per_s", ".1f"), ("steps", "steps", ".0f"), ("minutes", "minutes", ".1f")]
    lines = ["| setting | seeds | " + " | ".join(title for title, _, _ in columns) + " |"]
    lines += ["|---" * (len(columns) + 2) + "|"]
    for name in names:
        of_setting = [run for run in runs if run["setting"] == name]
        if of_setting:
            cells = [cell([run[key] for run in of_setting], form) for _, key, form in columns]
            lines.append(f"| {name} | {len(of_setting)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def splits_of(args: argparse.Namespace) -> tuple[SplitConfig, SplitConfig]:
    """Training and validation split of the data that the command names.  Raises UserError."""
    if args.shapes:
        folder = args.out / "shapes"
        sizes = ["--train", str(args.shapes_train), "--val", str(args.shapes_val)]
        call(["shapes", "--out", str(folder), *sizes])
        train_split, val_split = (
            SplitConfig(str(folder / split), str(folder / "annotations" / f"instances_{split}.json"))
            for split in ("train", "val")
        )
        return train_split, val_split
    if args.data:
        # Called again it takes what it chose before, or refuses other data.
        chosen = args.out / "folder"
        of_model = ["--model", "ttfnet_r18", "--workdir", str(chosen), "--dry-run"]
        call(["train", *(f"--data={pathlib.Path(path).resolve()}" for path in args.data), *of_model])
        data = config_of(str(chosen / "config.py")).data
        if not data.val.annotations:
            raise ConfigError(f"--data {args.data[0]}: no image is left for evaluation; add some")
        return data.train, data.val
    if not (args.train and args.val):
        raise ConfigError("no data: give --shapes, --data FOLDER, or --train IMAGES JSON and --val IMAGES JSON")
    train_split, val_split = (SplitConfig(*(str(pathlib.Path(p).resolve()) for p in s)) for s in (args.train, args.val))
    return train_split, val_split


def call(words: Sequence[str]) -> None:
    """`python -m kpjax WORDS`.  Raises UserError where it fails, after what it says itself."""
    if subprocess.run([sys.executable, "-m", "kpjax", *words], cwd=ROOT).returncode:
        raise UserError(f"python -m kpjax {' '.join(words)} failed")


def data_arguments(train_split: SplitConfig, val_split: SplitConfig, size: int) -> list[str]:
    """Where the data are, and the sizes that `kpjax train --data` chooses for them on a CPU (0: no size was asked)."""
    config = Config()
    config.data.train, config.data.val = train_split, val_split
    facts = facts_of(open_source(config.data, "train"), len(open_source(config.data, "val")))
    chosen = choose(facts, Machine("cpu", 1, 0), Wishes(size=size), "ttfnet_r18", own_options(small=True), "").config
    print(
        f"{facts.images} images for training and {facts.val_images} for evaluation, at {chosen.augment.height} pixels"
    )
    values = {
        **{
            f"data.{name}.{key}": value
            for name in ("train", "val")
            for key, value in vars(getattr(config.data, name)).items()
        },
        "data.canvas": chosen.data.canvas,
        "data.max_boxes": chosen.data.max_boxes,
        "augment.height": chosen.augment.height,
        "augment.width": chosen.augment.width,
        "eval.resolution": chosen.eval.resolution,
        "eval.top_k": chosen.eval.top_k,
    }
    return [f"--config.{key}={value}" for key, value in values.items()]


def read_settings(path: pathlib.Path) -> Settings:
    """The function settings(steps) of a file.  Raises ConfigError."""
    if not path.is_file():
        raise ConfigError(f"--settings {path}: no such file")
    found = runpy.run_path(str(path)).get("settings")
    if found is None:
        raise ConfigError(
            f"--settings {path}: it has no function settings(steps); benchmarks/recipe_settings.py shows one"
        )
    for name, arguments in found(TRIED).items():
        if not re.fullmatch(r"[\w.+-]+", name):
            raise ConfigError(f"--settings {path}: {name!r} is no name; use letters, digits and . + - _")
        if not arguments or not arguments[0].startswith("--config="):
            raise ConfigError(f"--settings {path}: the first argument of {name} is not --config=BASE")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what has not run yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = parser.add_mutually_exclusive_group()
    data.add_argument("--shapes", action="store_true", help="shapes, drawn as `python -m kpjax shapes` does")
    data.add_argument("--data", action="append", metavar="FOLDER", help="as `kpjax train --data`")
    data.add_argument("--train", nargs=2, metavar=("IMAGES", "JSON"))
    parser.add_argument("--val", nargs=2, metavar=("IMAGES", "JSON"))
    parser.add_argument("--shapes-train", type=int, default=1000, metavar="N", help="images (default %(default)s)")
    parser.add_argument("--shapes-val", type=int, default=200, metavar="N", help="images (default %(default)s)")
    limit = parser.add_mutually_exclusive_group(required=True)
    limit.add_argument("--minutes", type=float, help="of the steps of each run")
    limit.add_argument("--steps", type=int, help="of each run")
    parser.add_argument("--seeds", type=int, default=2, help="0 to N - 1 (default %(default)s)")
    parser.add_argument("--size", type=int, default=0, help="side of the input in pixels (default: by the data)")
    parser.add_argument("--settings", type=pathlib.Path, default=SETTINGS, metavar="FILE")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these settings alone")
    parser.add_argument("--out", type=pathlib.Path, required=True, metavar="DIR")
    args = parser.parse_args(arguments)
    args.out = args.out.resolve()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    failed = []
    try:
        if args.minutes is None and args.steps < 2:
            raise ConfigError(f"--steps {args.steps}: give at least 2, of which the first is not timed")
        settings = read_settings(args.settings)
        names = args.only or list(settings(TRIED))
        if unknown := [name for name in names if name not in settings(TRIED)]:
            raise ConfigError(f"--only {unknown[0]}: {args.settings} has {', '.join(settings(TRIED))}")
        args.out.mkdir(parents=True, exist_ok=True)
        within = {"steps": args.steps} if args.minutes is None else {"minutes": args.minutes}
        work = Work(args.out, data_arguments(*splits_of(args), args.size), within, settings)
        for seed in range(args.seeds):  # all settings before the next seed: a table that is cut short says more
            for name in names:
                try:
                    run = work.run(name, seed)
                except ConfigError:
                    raise
                except UserError as error:
                    failed.append(f"{name}, seed {seed}: {error}")
                    print(failed[-1], file=sys.stderr, flush=True)
                    continue
                print(f"{name}, seed {seed}: AP {run['AP']:.3f}, AP50 {run['AP50']:.3f}", flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    print(table([run for run in work.known["runs"] if run["seed"] < args.seeds], names))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
