"""The report of a run: its newest checkpoint, evaluated where that was not done, its history and its data.

`report_run(workdir)` is what `kpjax report` calls and what the end of a training run can call.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable

import jax
import numpy as np

from kpjax.checkpoint.weights import Loaded, load_inference
from kpjax.config import Config
from kpjax.data.opening import has_validation, open_source, training_images
from kpjax.data.source import Source
from kpjax.detectors import to_measure
from kpjax.errors import ConfigError, UserError
from kpjax.inference import evaluate as ev
from kpjax.inference.kept import keep_detections, kept_detections, made_of
from kpjax.inference.outputs import Evaluation, output_folder
from kpjax.inference.program import oracle_heads
from kpjax.show.cases import MOST_PICTURES
from kpjax.show.report import PAGE, Subject, write_page
from kpjax.training.run import total_steps

TRAIN_IMAGES = 100  # training images whose AP is compared with the split's
_FEW_CANVASES = 4  # of these: their AP need not be exact
DETECTIONS = ("detections.json", "report_detections.json")  # eval.py's, and those that a report evaluated itself

Say = Callable[[str], None]


def report_run(
    place: str,
    out: str = "",
    *,
    config: Config | None = None,
    best: bool = False,
    split: str = "val",
    oracle: bool = False,
    train_images: int = TRAIN_IMAGES,
    pictures: int = MOST_PICTURES,
    say: Say = print,
    progress: bool = False,
) -> str:
    """Write the report of a work directory or an inference checkpoint, and return its path.

    out: the page's path ("": report.html in the work directory, or beside the checkpoint).  config: other settings than
    those stored with the weights, e.g. where the data are.  best: the checkpoint with the best AP.  oracle: measure AP
    with each head replaced by the ground truth, an evaluation for each.  train_images: training images to evaluate,
    too; 0: none.  pictures: of errors.  say: gets each line about what is done or missing.

    Detections of the same checkpoint, split and settings are not made again.  What cannot be had (a split without
    annotations, data that are gone) is said in a line and left out.  One process alone.
    Raises UserError where there is no checkpoint, and where the page cannot be written.
    """
    if jax.process_count() > 1:
        raise ConfigError("a report is made by one process; run kpjax report once the run has ended")
    loaded = load_inference(place, best=best)
    config = copy.deepcopy(config or loaded.config)
    if config is None:
        raise ConfigError(f"{place} holds no configuration, so that its data are unknown; give --config FILE")
    workdir = place if os.path.isdir(os.path.join(place, "checkpoints")) else ""
    folder = workdir or os.path.dirname(os.path.abspath(place))
    out = out or os.path.join(folder, PAGE)
    output_folder(os.path.dirname(os.path.abspath(out)))
    missing: list[str] = []

    def lack(line: str) -> None:
        missing.append(line)
        say(f"missing     {line}")

    train = _opened(loaded, config, "train", lack)
    if train is not None:
        train = training_images(train, config.data)
    source = None
    if split == "train":
        source = train
    elif has_validation(config.data):
        source = _opened(loaded, config, split, lack)
    else:
        lack(
            "config.data.val names no validation split: there are no detections to look at; name one with --config "
            "FILE, or look at the training images with --split train"
        )
    evaluation, by_head, train_ap, seen = None, {}, float("nan"), 0
    if source is not None:
        evaluation = _evaluated(loaded, config, source, folder, say, lack, progress)
    if evaluation is not None and oracle and source is not None and evaluation.stats:
        by_head = _oracle(loaded, config, source, say, lack, progress)
    if train is not None and evaluation is not None and train_images and split != "train" and evaluation.stats:
        train_ap, seen = _train_ap(loaded, config, train, train_images, say, lack, progress)
    if workdir and not os.path.isfile(os.path.join(workdir, "metrics.jsonl")):
        lack(f"{workdir} has no metrics.jsonl, so that there are no curves of the run")
    steps = config.steps or (total_steps(config, len(train)) if train is not None else None)
    subject = Subject(
        place=place,
        detector=loaded.detector,
        config=config,
        names=loaded.names,
        workdir=workdir,
        step=loaded.step,
        split=split,
        source=source if evaluation is not None else None,
        evaluation=evaluation,
        train=train,
        train_ap=train_ap,
        train_images=seen,
        steps=steps,
        oracle=by_head,
        missing=tuple(missing),
    )
    return write_page(out, subject, pictures)


def _opened(loaded: Loaded, config: Config, split: str, lack: Say) -> Source | None:
    """A split of the configuration; None, with a line of why, where it cannot be used with these weights."""
    detector = loaded.detector
    try:
        source = open_source(config.data, split, **to_measure(detector))
        ev.check_classes(detector, source, loaded.names)
        ev.check_points(detector, source)
        ev.check_cameras(detector, source)
    except (UserError, OSError) as error:
        lack(f"the split {split}: {error}")
        return None
    return source


def _evaluated(
    loaded: Loaded, config: Config, source: Source, folder: str, say: Say, lack: Say, progress: bool
) -> Evaluation | None:
    """The evaluation of a split: from a file, where one is of it, else made and kept in a file."""
    about = made_of(loaded.detector, loaded.variables, config, source)
    for name in DETECTIONS:
        kept = kept_detections(os.path.join(folder, name), about, loaded.detector.metric)
        if kept is not None:
            say(f"detections  {os.path.join(folder, name)}, made of the same checkpoint, split and settings")
            return ev.measured(kept, source)
    try:
        evaluator = ev.make_evaluator(loaded.detector, config)
        count = min(len(source), config.eval.images or len(source))
        say(f"evaluating  {count} images, {ev.programs_needed(evaluator.views(source), len(evaluator.engine.scales))}")
        found = evaluator(loaded.variables, source, progress=progress)
    except UserError as error:
        lack(f"the evaluation: {error}")
        return None
    path = os.path.join(folder, DETECTIONS[1])
    try:
        keep_detections(path, found, about)
    except UserError as error:
        say(f"not kept    {error}")
    return found


def _train_ap(
    loaded: Loaded, config: Config, train: Source, images: int, say: Say, lack: Say, progress: bool
) -> tuple[float, int]:
    """AP on the first training images, and how many they are; nan where it cannot be measured."""
    config = copy.deepcopy(config)
    config.eval.images = min(images, len(train))
    config.eval.max_canvases = min(config.eval.max_canvases or _FEW_CANVASES, _FEW_CANVASES)
    say(f"evaluating  {config.eval.images} training images, to compare")
    try:
        found = ev.make_evaluator(loaded.detector, config)(loaded.variables, train, progress=progress)
    except UserError as error:
        lack(f"AP on training images: {error}")
        return float("nan"), 0
    return (found.ap if found.ap >= 0 else float("nan")), found.images


def _oracle(loaded: Loaded, config: Config, source: Source, say: Say, lack: Say, progress: bool) -> dict[str, float]:
    """AP with each head replaced by the ground truth, and with all of them, by the heads' names; "": with none."""
    heads = oracle_heads(loaded.detector)
    if not heads:
        lack(f"{loaded.detector.name} has no ground truth for its heads: there is no oracle")
        return {}
    config = copy.deepcopy(config)
    config.eval.preset = "na"  # an oracle works on one view of an image
    found = {}
    for chosen in ((), *((head,) for head in heads), heads):
        say(f"oracle      {', '.join(chosen) or 'none'}")
        evaluator = ev.make_evaluator(loaded.detector, config, oracle=tuple(chosen))
        name = "all heads" if chosen == heads and len(heads) > 1 else ", ".join(chosen)
        found[name] = float(np.maximum(evaluator(loaded.variables, source, progress=progress).ap, 0.0))
    return found


def report_of_evaluation(
    path: str,
    place: str,
    loaded: Loaded,
    config: Config,
    source: Source,
    evaluation: Evaluation,
    split: str,
    pictures: int = MOST_PICTURES,
) -> str:
    """Write the report of an evaluation that is already there (`eval.py --report`) and return its path."""
    missing: list[str] = []
    train = None
    if split != "train":
        train = _opened(loaded, config, "train", missing.append)
    train = source if split == "train" else train if train is None else training_images(train, config.data)
    workdir = place if os.path.isdir(os.path.join(place, "checkpoints")) else ""
    subject = Subject(
        place=place,
        detector=loaded.detector,
        config=config,
        names=loaded.names,
        workdir=workdir,
        step=loaded.step,
        split=split,
        source=source,
        evaluation=evaluation,
        train=train,
        steps=config.steps or (total_steps(config, len(train)) if train is not None else None),
        missing=tuple(missing),
    )
    return write_page(path, subject, pictures)
