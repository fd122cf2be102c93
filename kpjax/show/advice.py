"""What to try next, from a run's own figures: each suggestion with the figure it follows from and the setting."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from kpjax.config import Config
from kpjax.metrics.errors_by_kind import KINDS
from kpjax.metrics.findings import BoxErrors, Findings
from kpjax.show.history import History

# From which figures on a suggestion is made.  They are rules of thumb: a page of numbers says where to look first.
RISING = 0.01  # AP that the last quarter of a run still gained
GAP = 0.15  # AP on training images above that on the split
LOW = 0.5  # of the other sizes' or classes' AP
WAITING = 0.25  # share of the time
FEW_OBJECTS = 200  # of a split: an AP from fewer moves by some hundredths by chance
FEW_EXAMPLES = 50  # of a class in training
CELL = 4  # pixels of the network's input; smaller boxes hardly leave a peak
MOST = 8


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known; None, nan or empty where it is not.

    steps: of the whole run.  ap, train_ap: of the split and of training images.  names: of the K classes.  errors: of
    boxes.  train_counts: (K,) objects of each class in training.  train_sides: (n,) square root of each training box's
    area, pixels of the network's input.  counts: objects in an image of the split, (N,).
    """

    config: Config
    history: History
    names: Sequence[str] = ()
    steps: int | None = None
    ap: float = float("nan")
    train_ap: float = float("nan")
    boxes: Findings | None = None
    errors: BoxErrors | None = None
    train_counts: np.ndarray | None = None
    train_sides: np.ndarray | None = None
    counts: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Advice:
    """why: the figure.  what: what to do.  setting: as it is written on the command line; "": none."""

    why: str
    what: str
    setting: str = ""


def what_next(facts: Facts) -> list[Advice]:
    """At most MOST suggestions, the ones that usually matter most first."""
    parts = (_schedule, _fit, _sizes, _kinds, _classes, _limits)
    return [advice for part in parts for advice in part(facts)][:MOST]


def _schedule(facts: Facts) -> Iterator[Advice]:
    config, history = facts.config, facts.history
    steps, scores = history.evaluations.get("AP", (np.zeros(0), np.zeros(0)))
    if facts.steps and 0 < history.step < facts.steps:
        yield Advice(
            f"The run is at step {history.step:,} of {facts.steps:,}"
            + (", before its learning rate has dropped." if config.optim.schedule == "step" else "."),
            "Let it finish: the same train.py command goes on from here.",
        )
    elif len(scores) > 2:
        before = scores[steps <= 0.75 * steps[-1]]
        falling = config.optim.schedule != "step"  # then AP rises to the end, however long a run is
        if len(before) and scores[-1] == scores.max() and scores[-1] - before.max() > RISING and not falling:
            key, value = ("steps", config.steps) if config.steps else ("epochs", config.epochs)
            yield Advice(
                f"AP still rose by {scores[-1] - before.max():.3f} in the last quarter of the run.",
                "Train longer, in another work directory.",
                f"--config.{key}={round(1.5 * value) or value * 1.5:g}",
            )
    best = history.best
    if best and len(scores) > 1 and best[1] - scores[-1] > RISING:
        yield Advice(
            f"AP was {best[1]:.3f} at step {best[0]:,} and is {scores[-1]:.3f} at the end.",
            "Use the best checkpoint, and train for fewer steps or with a moving average.",
            "eval.py --best" if config.optim.ema else "--config.optim.ema=0.999",
        )
    if history.step and not len(scores):
        yield Advice(
            "The run was not evaluated while it trained, so nothing says where it was best.",
            "Evaluate from time to time.",
            f"--config.eval.every={max(1, history.step // 10)}",
        )
    waits = history.train.get("data_wait", (np.zeros(0), np.zeros(0)))[1]
    if len(waits) and float(np.median(waits)) > WAITING:
        yield Advice(
            f"Training waited {100 * float(np.median(waits)):.0f}% of the time for images.",
            "Shrink large images once, or give decoding more threads.",
            f"--config.data.prefetch={2 * facts.config.data.prefetch}",
        )


def _fit(facts: Facts) -> Iterator[Advice]:
    config, gap = facts.config, facts.train_ap - facts.ap
    finished = not facts.steps or facts.history.step >= facts.steps or not facts.history.step
    if gap > GAP:
        more = "more labelled images help most; else more augmentation, or a run from pretrained weights"
        weak = config.augment.kind == "shift" and config.augment.scale < 0.4
        setting = "--config.augment.scale=0.4" if weak else "--config.augment.kind=crop"
        if config.augment.kind == "crop":
            setting = "" if config.init_from else "--config.init_from=resnet18.pth"
        yield Advice(
            f"AP is {facts.train_ap:.3f} on training images and {facts.ap:.3f} on the split: it learns them by heart.",
            f"{more[0].upper()}{more[1:]}.",
            setting,
        )
    elif facts.train_ap < 0.4 and finished:
        yield Advice(
            f"AP is only {facts.train_ap:.3f} on images that it was trained on.",
            "Train longer or start from pretrained weights; then try a larger network.",
            "" if config.init_from else "--config.init_from=resnet18.pth",
        )
    elif not config.init_from and facts.ap < 0.4 and facts.history.step and finished:
        yield Advice("Training began with random weights.", "Start from ImageNet's.", "--config.init_from=resnet18.pth")


def _sizes(facts: Facts) -> Iterator[Advice]:
    config, sides = facts.config, facts.train_sides
    larger = f"--config.augment.height={_larger(config.augment.height)} --config.augment.width=" + str(
        _larger(config.augment.width)
    )
    if sides is not None and len(sides) and float((sides < CELL).mean()) > 0.02:
        yield Advice(
            f"{100 * float((sides < CELL).mean()):.0f}% of the training boxes are smaller than {CELL} pixels of the "
            "network's input.",
            "Use a larger input, or cut the images into parts.",
            larger,
        )
    if facts.boxes is None:
        return
    found = {
        size: float(np.nanmean([row.by_size[size] for row in facts.boxes.rows]))
        for size in ("small", "medium", "large")
        if any(not np.isnan(row.by_size[size]) for row in facts.boxes.rows)
    }
    rest = max((value for size, value in found.items() if size != "small"), default=float("nan"))
    if found.get("small", 1.0) < LOW * rest:
        yield Advice(
            f"AP of small objects is {found['small']:.3f}, that of larger ones {rest:.3f}.",
            "Use a larger input, and evaluate with it.",
            larger,
        )


def _kinds(facts: Facts) -> Iterator[Advice]:
    if facts.errors is None or np.isnan(facts.errors.errors.ap50):
        return
    cost, counts = facts.errors.errors.cost, facts.errors.counts
    worst = max(KINDS, key=lambda kind: cost[kind])
    if cost[worst] < 0.03:
        return
    why = f"Errors of {worst} cost most: without them AP50 would be {cost[worst]:.3f} higher."
    if worst == "missed":
        why = f"Missed objects ({counts['missed']:,}) cost most: without them AP50 would be {cost[worst]:.3f} higher."
    what, setting = {
        "classification": ("Look at the pictures of this kind: are the labels consistent? Give more examples of", ""),
        "localisation": ("Give the sizes more weight, or train longer; check that boxes are drawn tightly.", ""),
        "both": ("Look at the pictures of this kind: often an object's part, or a class that is not labelled.", ""),
        "duplicate": ("Suppress more.", "--nms gaussian (eval.py)"),
        "background": ("Add images without objects, and look for objects that nobody labelled.", ""),
        "missed": ("Look at the pictures of this kind: are they small, covered or cut? Train with more of them.", ""),
    }[worst]
    if worst == "classification":
        what = what.removesuffix(" Give more examples of") + " Give more examples of the confused classes."
    if worst == "localisation" and "wh_weight" in facts.config.model.options:
        setting = f"config.model.options['wh_weight'] = {2 * facts.config.model.options['wh_weight']:g}"
    yield Advice(why, what, setting)


def _classes(facts: Facts) -> Iterator[Advice]:
    if facts.boxes is None:
        return
    aps = np.array([row.ap for row in facts.boxes.rows])
    known = np.flatnonzero(~np.isnan(aps))
    total = sum(row.objects for row in facts.boxes.rows)
    if 0 < total < FEW_OBJECTS:
        yield Advice(
            f"The split has only {total:,} objects, so that its AP moves by some hundredths by chance.",
            "Label more images for it before you compare runs.",
        )
    if len(known) < 2:
        return
    worst = int(known[np.argmin(aps[known])])
    others = float(np.mean(np.delete(aps[known], np.argmin(aps[known]))))
    if aps[worst] < LOW * others:
        few = facts.train_counts is not None and facts.train_counts[worst] < FEW_EXAMPLES
        trained = (
            "" if facts.train_counts is None else f", with {int(facts.train_counts[worst]):,} examples in training"
        )
        name = facts.names[worst]
        what = "Label more images with it." if few else "Look at its pictures and at its row of the confusion matrix."
        if facts.errors is not None and not few:
            taken = facts.errors.confusion[worst, :-1].copy()
            taken[worst] = 0
            if taken.max() > 0.2 * facts.boxes.rows[worst].objects:
                other = facts.names[int(taken.argmax())]
                what = f"{int(taken.max()):,} of its objects are taken for {other}: give examples that tell them apart."
        yield Advice(f"{name} has an AP of {aps[worst]:.3f}{trained}; the other classes' mean is {others:.3f}.", what)


def _limits(facts: Facts) -> Iterator[Advice]:
    config = facts.config
    if facts.counts is not None and len(facts.counts) and facts.counts.max() > config.eval.top_k:
        yield Advice(
            f"An image has {int(facts.counts.max()):,} objects, and at most {config.eval.top_k} are found in one.",
            "Allow more.",
            f"--config.eval.top_k={int(facts.counts.max())}",
        )
    boxes = facts.boxes
    if boxes is not None and not np.isnan(boxes.threshold.score):
        best = boxes.threshold
        yield Advice(
            f"A least score of {best.score:.2f} gives the best F1, {best.f1:.3f} (precision {best.precision:.3f}, "
            f"recall {best.recall:.3f}).",
            "Use it where detections are counted.",
            f"--score-thr {best.score:.2f} (detect.py)",
        )


def _larger(side: int) -> int:
    """A side half as large again, in whole multiples of 32 pixels, which every model but the corner methods takes."""
    return round(1.5 * side / 32) * 32
