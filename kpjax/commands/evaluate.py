"""`kpjax eval` and eval.py: evaluate a detector on a split, COCO's numbers or KITTI's, detections as JSON, pictures."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from absl import flags as absl_flags

from kpjax.commands import flags
from kpjax.config import Config, shared
from kpjax.errors import ConfigError

USAGE = (
    "kpjax eval [RECIPE] (--workdir DIR | --checkpoint DIR) [option ...]\n                  [--config.KEY=VALUE ...]"
)
DESCRIPTION = (
    "Evaluate a detector on a split of its data: COCO's numbers or KITTI's, and detections.json. The settings are "
    "those stored with the weights, or with RECIPE (--config) the file's."
)
EXAMPLES = (
    "kpjax eval --workdir runs/coco --best --per-class",
    "kpjax eval coco_r18 --checkpoint runs/r18 --preset flip --config.data.val.images=FOLDER",
)
HELP = {
    "weights and data": ("workdir DIR", "checkpoint DIR", "best", "config RECIPE", "split"),
    "how it is tested": ("preset", "nms", "fast", "batch N"),
    "what is printed and written": (
        *("out FILE", "per-class", "max-dets N,N,N", "show-dir DIR", "plots DIR", "report DIR", "oracle HEAD,..."),
    ),
    **flags.PROCESSES_HELP,
}

FAST_CANVASES = 4  # canvases a scale with --fast
PICTURE_SCORE = 0.3  # least score of a box that --show-dir draws


def define(values: absl_flags.FlagValues) -> None:
    """Declare the flags."""
    flags.define_config(values)
    # module_name: under which title `eval.py --help` lists them
    ours: dict[str, Any] = {"flag_values": values, "module_name": "eval.py"}
    text = {
        "workdir": "work directory of train.py: its newest checkpoint is evaluated",
        "checkpoint": "an inference checkpoint (or one step of a work directory) instead of --workdir",
        "show-dir": "folder for pictures of the detections",
        "plots": "folder for precision-recall curves and the confusion matrix, as PNG",
        "report": "folder for report.html: numbers, curves, errors as pictures and what to try next, in one page",
        "oracle": "heads that the ground truth replaces, e.g. heatmap,wh,offset: what each one's errors cost",
        "max-dets": "most detections an image in COCO's table of boxes, e.g. 100,300,1000 as mmdetection "
        "(default: 1,10,100)",
        "out": "where detections.json goes (default: in the work directory, or beside the checkpoint)",
    }
    for name, help_text in text.items():
        absl_flags.DEFINE_string(name, "", help_text, **ours)
    absl_flags.DEFINE_enum("split", "val", ["val", "train"], "which split of config.data", **ours)
    absl_flags.DEFINE_enum(
        "preset",
        None,
        ["na", "flip", "ms", "first"],
        "the papers' test protocol; first: of two looks the first alone (default: config.eval.preset)",
        **ours,
    )
    absl_flags.DEFINE_enum(
        "nms",
        None,
        ["hard", "linear", "gaussian", "none"],
        "soft-NMS (default: config.eval.nms, else the model's own)",
        **ours,
    )
    absl_flags.DEFINE_boolean("best", False, "with --workdir: the best checkpoint by AP", **ours)
    absl_flags.DEFINE_boolean(
        "fast",
        False,
        "config.eval.max_canvases = 4: at most 4 canvases a scale, fewer compilations, slightly other detections",
        **ours,
    )
    absl_flags.DEFINE_boolean("per-class", False, "print the AP of each class too", **ours)
    absl_flags.DEFINE_integer("batch", 0, "images a program (0: config.eval.batch)", 0, **ours)


def main(values: absl_flags.FlagValues) -> int:
    """Evaluate.  Raises UserError."""
    arguments: dict[str, Any] = values.flag_values_dict()
    workdir, checkpoint = arguments["workdir"], arguments["checkpoint"]
    if bool(workdir) == bool(checkpoint):
        raise ConfigError("give one of --workdir and --checkpoint")
    if arguments["best"] and not workdir:
        raise ConfigError("--best chooses among the checkpoints of a --workdir; name one")
    given = flags.read_config(values) if values["config"].present else None

    with flags.importing():  # after the flags: a typing mistake should not wait for the devices
        import jax

        from kpjax.checkpoint.weights import load_inference
        from kpjax.data.opening import open_source
        from kpjax.data.source import fingerprint
        from kpjax.data.turned import notice
        from kpjax.detectors import to_measure
        from kpjax.inference import evaluate as ev
        from kpjax.inference.kept import keep_detections, made_of
        from kpjax.inference.outputs import check_outputs, class_table, output_folder, write_kitti_results
        from kpjax.parallel import distributed
        from kpjax.parallel.sharding import connect_devices
        from kpjax.show.pictures import check_pictures, show

    loaded = load_inference(workdir or checkpoint, best=arguments["best"])
    detector, config = settings(given, loaded, workdir or checkpoint)
    config.eval.batch = arguments["batch"] or config.eval.batch
    config.eval.preset = arguments["preset"] or config.eval.preset
    config.eval.nms = arguments["nms"] or config.eval.nms
    if arguments["fast"]:
        config.eval.max_canvases = min(config.eval.max_canvases or FAST_CANVASES, FAST_CANVASES)
    split, show_dir, plots, report = (arguments[key] for key in ("split", "show-dir", "plots", "report"))
    oracle = tuple(filter(None, arguments["oracle"].split(",")))
    options: dict[str, Any] = {"oracle": oracle, "max_dets": max_dets(arguments["max-dets"])}
    source = open_source(config.data, split, **to_measure(detector))
    annotated = len(source.annotations.ids) > 0
    out = arguments["out"] or default_out(workdir or checkpoint, split, "" if annotated else split_name(config, split))
    results = f"{os.path.splitext(out)[0]}_kitti" if detector.solid else ""
    for folder in filter(
        None, (os.path.dirname(out), results, show_dir, plots, report)
    ):  # now, not after an hour of evaluation
        output_folder(folder)
    read = [config.data.train.annotations, config.data.val.annotations, *(source.files if source.on_disk else ())]
    check_outputs([out], read, "--out")
    if show_dir:
        check_pictures(show_dir, source)
    ev.check_classes(detector, source, loaded.names)
    ev.check_points(detector, source)
    ev.check_cameras(detector, source)
    for flag in (f for f in ("plots", "oracle", "max-dets") if arguments[f] and not annotated):
        raise ConfigError(f"--{flag} compares with annotations, and {source.name} has none")
    if report and oracle:
        raise ConfigError("--report is about the detector, and --oracle replaces its heads; leave one of them out")
    if arguments["max-dets"] and detector.solid:
        raise ConfigError(f"--max-dets is for COCO's table, and {detector.name} is measured by KITTI's; leave it out")
    evaluator = ev.make_evaluator(detector, config, **options)
    engine = evaluator.engine
    same = {f"--{key}": arguments[key] for key in ("split", "fast", "best", "oracle", "max-dets")} | shared(config)
    connect_devices(engine.mesh)
    distributed.agree(same | {"the checkpoint's step": loaded.step, f"the split {split}": fingerprint(source)})
    first = jax.process_index() == 0
    if first:
        step = "" if loaded.step is None else f", step {loaded.step}"
        count = min(len(source), config.eval.images) if config.eval.images else len(source)
        print(f"model       {detector.name}, {detector.num_classes} classes ({workdir or checkpoint}{step})")
        print(f"split       {split}: {count} of {len(source)} images, {source.name}")
        print(
            f"protocol    preset {config.eval.preset}, {f'soft-NMS {config.eval.nms}, ' * bool(config.eval.nms)}"
            f"resolution {config.eval.resolution}, "
            f"batches of {engine.batch} on {engine.mesh.size} x {jax.devices()[0].device_kind}"
        )
    if first and (turned := notice(source)):
        print(f"exif        {turned}")
    if annotated and first:
        for line in limits(config, detector, options["max_dets"]):
            print(f"limit       {line}")
    if oracle and first:
        print(f"oracle      {', '.join(oracle)} from the annotations: an analysis, not the detector's AP")
    own = ev.own_views(detector, config, source)
    views = ev.on_fewer_canvases(own, detector, config)
    if config.eval.max_canvases and first:
        print(f"canvases    {what_differs(own, views)}")
    if views:
        count = len({view.canvas for view in views})
        if first:
            print(f"programs    {ev.programs_needed(views, len(engine.scales))}", flush=True)
        seconds = evaluator.first_program(loaded.variables, source, views[0].canvas)  # on every host: all share it
        if first:
            print(
                f"            the first took {seconds:.1f} s to compile (or to fetch from the cache) and to run, so "
                f"all together about {count * seconds:.0f} s",
                flush=True,
            )
    result = evaluator(loaded.variables, source, views=views)
    if not first:
        return 0
    # The numbers first: no file that cannot be written takes them away.
    print(result.text or f"{source.name} has no annotations: detections only, no AP")
    if arguments["per-class"] and result.per_class:
        print(class_table(result), flush=True)
    keep_detections(out, result, made_of(detector, loaded.variables, config, source, oracle))
    if show_dir:
        show(show_dir, result, source, PICTURE_SCORE)
    if plots:
        from kpjax.show.plots import write_plots

        print("plots       " + ", ".join(write_plots(plots, result, source, PICTURE_SCORE)))
    if report:
        from kpjax.show.run_report import report_of_evaluation

        name = os.path.join(report, "report.html")
        evaluated = dataclasses.replace(loaded, detector=detector)
        print(
            "report      " + report_of_evaluation(name, workdir or checkpoint, evaluated, config, source, result, split)
        )
    if result.skipped:
        print(f"{result.skipped} images could not be read and count as images in which nothing was found")
    rate = result.images / result.seconds
    print(f"{result.images} images in {result.seconds:.1f} s ({rate:.1f} a second, compilation included)")
    print(f"{len(result.detections)} detections: {out}")
    if results:
        write_kitti_results(results, result, source)
        print(f"KITTI's result files: {results}")
    return 0


def max_dets(text: str) -> tuple[int, int, int]:
    """--max-dets: three ascending numbers, 100 among them, at which COCO's AP is taken."""
    from kpjax.metrics.coco import MAX_DETS

    if not text:
        return MAX_DETS
    try:
        least, middle, most = (int(part) for part in text.split(","))
    except ValueError:
        least = middle = most = 0
    if not 0 < least < middle < most or 100 not in (least, middle, most):
        raise ConfigError(f"--max-dets is {text!r}; give three ascending numbers, one of them 100, e.g. 100,300,1000")
    return least, middle, most


def limits(config: Config, detector: Any, most: tuple[int, int, int]) -> list[str]:
    """What keeps detections out of COCO's table, a line each.  most: the table's numbers of detections an image."""
    if detector.metric == "kitti":
        return []
    said = []
    top_k, beyond = config.eval.top_k, [number for number in most if number > config.eval.top_k]
    # a pose model's scales are merged uncut
    if beyond and not (detector.metric == "keypoints" and len(detector.protocols[config.eval.preset].scales) > 1):
        said.append(
            f"config.eval.top_k = {top_k} keeps an image from having more detections: recall at "
            f"{' and '.join(map(str, beyond))} is that at {top_k}, and --config.eval.top_k={most[-1]}, "
            "with --config, lifts it"
        )
    if config.eval.score_threshold:
        said.append(
            f"config.eval.score_threshold = {config.eval.score_threshold:g} leaves out detections of that score or less"
        )
    return said


def what_differs(exact: list[Any], fewer: list[Any]) -> str:
    """What config.eval.max_canvases changes, as text."""
    from kpjax.inference.evaluate import canvases_in_words

    canvases = [len({view.canvas for view in views}) for views in (exact, fewer)]
    moved = sum(a.canvas != b.canvas for a, b in zip(exact, fewer, strict=True))
    if not moved:
        return f"nothing differs: the images need {canvases_in_words(canvases[0])}"
    return (
        f"{canvases_in_words(canvases[1])} instead of {canvases[0]}: {moved} of {len(exact)} views have more border "
        "than the protocol gives them, which changes their detections a little; config.eval.max_canvases=0 is without"
    )


def split_name(config: Config, split: str) -> str:
    """What COCO's server calls the split: test-dev2017 for image_info_test-dev2017.json."""
    data = config.data
    paths = {
        "coco": (data.train.annotations, data.val.annotations),
        "tfds": (data.tfds_train, data.tfds_val),
        "kitti": (data.kitti_train, data.kitti_val),
    }
    path = paths[data.source][split != "train"]
    return os.path.splitext(os.path.basename(path))[0].removeprefix("image_info_") or split


def default_out(path: str, split: str, unannotated: str = "") -> str:
    """detections.json in the work directory (its path, or one of its steps) or beside the checkpoint at `path`.

    Those of the training split are detections_train.json; those of a split without annotations have the name that
    COCO's server asks for, detections_SPLIT_kpjax_results.json.
    """
    name = "detections.json" if split == "val" else f"detections_{split}.json"
    if unannotated:
        name = f"detections_{unannotated}_kpjax_results.json"
    if os.path.isdir(os.path.join(path, "checkpoints")):
        return os.path.join(path, name)
    parent, last = os.path.split(os.path.abspath(path))
    if last.isdigit() and os.path.basename(parent) == "checkpoints":
        parent = os.path.dirname(parent)
    return os.path.join(parent, name)


def settings(given: Config | None, loaded: Any, path: str) -> tuple[Any, Config]:
    """The detector and the configuration: the command line's, or the checkpoint's own.

    Raises ConfigError or CheckpointError where they do not fit.
    """
    from kpjax.checkpoint.weights import check_shapes
    from kpjax.detectors import build, options_of
    from kpjax.detectors.base import COMPUTATION

    if given is None:
        if loaded.config is None:
            raise ConfigError("the checkpoint holds no configuration; give --config")
        return loaded.detector, loaded.config
    if given.model.name != loaded.detector.name:
        raise ConfigError(
            f"config.model.name is {given.model.name!r} and the checkpoint is of {loaded.detector.name!r}; "
            "give the configuration it was trained with"
        )
    stored = {k: v for k, v in loaded.detector.options.items() if k not in COMPUTATION}
    wanted = {k: v for k, v in options_of(given.model).items() if k != "points"}  # they are the checkpoint's
    detector = build(given.model.name, loaded.detector.num_classes, **{**stored, **wanted})
    check_shapes(detector, loaded.variables, path)
    return detector, given
