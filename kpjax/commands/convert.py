"""`kpjax convert`: write a released PyTorch checkpoint as an Orbax inference checkpoint."""

from __future__ import annotations

import argparse
import collections
import functools
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kpjax import convert
from kpjax.convert.rules import flatten
from kpjax.detectors import MODELS, build, learns_points, list_models
from kpjax.detectors.base import Detector
from kpjax.detectors.box3d import KITTI_CLASSES
from kpjax.errors import ConfigError, UserError
from kpjax.person import PERSON

EXAMPLES = (
    "kpjax convert r18.pth --model centernet_r18_dcn_mmdet --out runs/r18",
    "kpjax convert mine.safetensors --model centernet_r18 --names names.txt --out runs/mine",
)
_MODULES_SHOWN = 40
_LEFT_OUT_SHOWN = 20
_FITS = 0.9  # the share of names and shapes with which a file is of a model; trunks alone are more than half


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.description = "Turn a checkpoint of PyTorch or safetensors into an inference checkpoint."
    parser.add_argument("file", metavar="FILE", help="the checkpoint; nothing in it is run, PyTorch is not needed")
    parser.add_argument("--model", required=True, metavar="NAME", help=f"one of {', '.join(list_models())}")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the inference checkpoint")
    parser.add_argument(
        "--names",
        metavar="FILE",
        help="class names, one a line (default: those of the released model's data, COCO or KITTI)",
    )
    parser.add_argument(
        "--points", metavar="FILE", help="names of an object's points, one a line, for a pose model of other joints"
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of the model; 256, is a list of one",
    )


def run(args: argparse.Namespace) -> int:
    """Convert, write, and say what went where.  Raises UserError on a file that does not fit."""
    from kpjax.checkpoint.weights import save_inference  # Orbax is slow to import: check the file first

    options = _options(args.option)
    if args.points:
        if not learns_points(args.model):
            raise ConfigError(f"--points is for models that find points; {args.model} finds boxes alone")
        options["points"] = {"names": read_names(args.points, "--points")}

    def of_classes(classes: int) -> Detector:
        return build(args.model, classes, **options)

    of_classes(1)  # an unknown model or option, before the file is read
    weights = convert.read_torch_weights(args.file)
    state_dict = weights.state_dict
    classes = convert.count_classes(of_classes, state_dict)
    detector = of_classes(classes or 80)
    try:
        variables = convert.import_torch(detector, state_dict)
    except convert.ImportMismatch as error:
        raise UserError(f"{args.file}: {error.one_line()}{_hint(args.model, state_dict, options)}") from None
    names = class_names(args.names, detector)
    bad = [path for path, leaf in flatten(variables).items() if not np.isfinite(leaf).all()]
    if bad:
        print(
            f"warning: {len(bad)} arrays hold numbers that are not finite (NaN or infinite), the first is {bad[0]}; "
            "with them the network may find nothing",
            file=sys.stderr,
        )
    save_inference(args.out, detector, variables, names)
    print(_summary(detector, state_dict, variables))
    if weights.average:
        print(f"weights   {weights.taken}, an average by its name; the file has no others")
    if weights.left_out:
        print(f"left out  {_left_out(weights)}: beside the weights in the file")
    print(
        f"classes   {detector.num_classes}: {', '.join(names[:5]) + (', ...' if len(names) > 5 else '') or 'no names'}"
    )
    print(f"written   {os.path.abspath(args.out)}; try: kpjax detect --checkpoint {args.out} IMAGE")
    return 0


def class_names(path: str | None, detector: Detector) -> tuple[str, ...]:
    """The names in a file, one a line; without a file those of the released model's data where it has as many."""
    count = detector.num_classes
    if not path:
        from kpjax.data.coco_names import COCO_NAMES

        if detector.solid:
            return KITTI_CLASSES if count == len(KITTI_CLASSES) else ()
        if detector.points == PERSON:
            return ("person",) if count == 1 else ()
        return COCO_NAMES if count == len(COCO_NAMES) else ()
    names = read_names(path, "--names")
    if len(names) != count:
        raise ConfigError(f"--names {path} has {len(names)} names and the checkpoint {count} classes")
    return names


def read_names(path: str, option: str) -> tuple[str, ...]:
    """The names in a text file, one a line.  option: the flag that named it, for the messages."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            return tuple(line.strip() for line in file if line.strip())
    except OSError as error:
        raise ConfigError(f"{option} {path}: {(error.strerror or 'cannot be read').lower()}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{option} {path} is not text in UTF-8; save it in that encoding") from None


def _options(given: list[str]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for item in given:
        key, equals, text = item.partition("=")
        if not equals:
            raise ConfigError(f"--option {item}: give KEY=VALUE, e.g. head_channels=256")
        options[key] = _value(text)
    return options


def _value(text: str) -> Any:
    """256 -> int, 0.2 -> float, "256,128" and "256," -> tuple, true and false -> bool; else the text."""
    kinds: tuple[Callable[[str], Any], ...] = (int, float, lambda item: {"true": True, "false": False}[item.lower()])
    parts = text.removesuffix(",").split(",")
    for kind in kinds:
        try:
            values = tuple(map(kind, parts))
        except (ValueError, KeyError):
            continue
        return values if "," in text else values[0]
    return text


def _left_out(weights: convert.Weights) -> str:
    """What lay beside the weights; a second set of weights is named as that, and which was taken."""
    names = [convert.shown(name) for name in weights.left_out]
    for i, name in enumerate(weights.left_out):
        if name in weights.other_sets:
            names[i] += f" (another set of weights; those of {weights.taken or 'the network itself'} were taken)"
    return ", ".join(names[:_LEFT_OUT_SHOWN]) + (
        f" and {len(names) - _LEFT_OUT_SHOWN} more" if len(names) > _LEFT_OUT_SHOWN else ""
    )


def _hint(model: str, state_dict: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    """Which model the file is of instead, or what it holds where it is of none."""
    builders = {name: _builder(name, tuple(options.items())) for name in MODELS}
    if convert.is_backbone(state_dict):
        return (
            "; the models here know a backbone alone in it, as of an ImageNet classifier: --config.init_from takes it"
        )
    name, share = convert.resembles(state_dict, builders)
    if share >= 0.5 and name == model:
        beside = _beside(model, state_dict)
        return f"; it looks like {name} with {f'{beside} beside it' if beside else 'some missing or of another shape'}"
    if share >= _FITS:
        return f"; it looks like {name}: try --model {name}"
    holds = f"; it holds {convert.listed(state_dict)}"
    near = convert.nearest(state_dict, builders)
    if not near.known:
        return f"; it looks like none of the models here, which have none of its names{holds}"
    if near.known == len(state_dict) and not near.missing:
        same = "give them as --option" if near.model == model else f"try --model {near.model} with --option"
        return f"; its names are those of {near.model}, its sizes are other ones: {same}{holds}"
    none = "it looks like none of the models here, " if 2 * near.known < len(state_dict) else ""
    lacks = f" and misses {near.missing}" if near.missing else ""
    return f"; {none}the nearest is {near.model}, which has {near.known} of its {len(state_dict)} names{lacks}{holds}"


@functools.cache
def _builder(name: str, options: tuple[tuple[str, Any], ...]) -> Callable[[int], Detector]:
    """The same function for the same model: what `kpjax.convert` learns of it takes seconds, and is kept."""
    return functools.partial(_build, name, dict(options))


def _build(name: str, options: Mapping[str, Any], classes: int) -> Detector:
    """A model with the options that were given, where it has them."""
    try:
        return build(name, classes, **options)
    except ConfigError:
        return build(name, classes)


def _beside(model: str, state_dict: Mapping[str, Any]) -> str:
    """The parts of a checkpoint that the model's table does not know, by the shortest prefix that no known key has."""
    rules = convert.RULES[build(model).import_rules]
    known = [key for key in state_dict if convert.destination(rules, key) is not None]
    parts: dict[str, None] = {}
    for key in (key for key in state_dict if convert.destination(rules, key) is None):
        names = key.split(".")
        starts = (".".join(names[: n + 1]) for n in range(len(names)))
        parts[next((s for s in starts if not any(k.startswith(f"{s}.") for k in known)), key)] = None
    some = list(parts)[:5]
    return ", ".join(some) + (f" and {len(parts) - 5} more" if len(parts) > 5 else "")


def _summary(detector: Detector, state_dict: Mapping[str, Any], variables: Mapping[str, Any]) -> str:
    """Which part of the checkpoint became which part of the network, and what was dropped."""
    moved: dict[tuple[str, str], list[int]] = collections.defaultdict(lambda: [0, 0])
    dropped: dict[str, int] = collections.Counter()
    for key, value in state_dict.items():
        path = convert.destination(convert.RULES[detector.import_rules], key)
        if path:
            entry = moved[key.rsplit(".", 1)[0].split(".")[0], "/".join(path.split("/")[1:3])]
            entry[0], entry[1] = entry[0] + 1, entry[1] + int(value.size)
        else:
            dropped[key.rsplit(".", 1)[-1] if key.endswith("num_batches_tracked") else key] += 1
    lines = [f"model     {detector.name}"]
    shown = list(moved.items())[:_MODULES_SHOWN]
    lines += [
        f"  {source:24s} -> {target:28s} {n:5d} arrays {size:12,d} numbers" for (source, target), (n, size) in shown
    ]
    if len(moved) > _MODULES_SHOWN:
        lines.append(f"  ... and {len(moved) - _MODULES_SHOWN} more parts")
    lines += [f"  dropped: {key}" + (f" (x {n})" if n > 1 else "") for key, n in dropped.items()]
    return "\n".join(lines)
