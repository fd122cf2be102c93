"""The report's sections on what a run began with and how it went: the data, and the logged numbers."""

from __future__ import annotations

import numpy as np

from kpjax.data.source import Source, all_objects, object_counts
from kpjax.show import figures
from kpjax.show.blocks import Maker, Section, Table
from kpjax.show.history import History
from kpjax.show.subject import Subject

_CLASSES = 40  # bars of classes


def run_section(maker: Maker, history: History) -> list[Section]:
    """The curves of the run."""
    if not history.step:
        return []
    drawn = []
    if history.losses:
        lines = {name: history.train[name] for name in history.losses}
        positive = all((values > 0).all() for _, values in lines.values())
        drawn.append(maker.figure(figures.curves(lines, "step", "", log=positive), "The loss and its parts by step"))
    scores = {
        name: (steps, np.where(values < 0, np.nan, values))
        for name, (steps, values) in history.evaluations.items()
        if name in ("AP", "AP50", "AP75", "APs", "APm", "APl", "box_AP") and (values >= 0).any()
    }
    if scores:
        best = history.best
        marked = {"AP": (float(best[0]), best[1])} if best else None
        caption = (
            f"AP on the validation split by step; best: {best[1]:.3f} at step {best[0]:,}" if best else "AP by step"
        )
        drawn.append(maker.figure(figures.curves(scores, "step", "", limits=(0, 1), marked=marked), caption))
    for key, label in (("lr", "Learning rate by step"), ("images_per_s", "Images a second by step")):
        if key in history.train:
            drawn.append(maker.figure(figures.curves({label: history.train[key]}, "step", ""), label))
    text = [f"The run has logged {history.step:,} steps."]
    if history.averaged > 1:
        text.append(f"Each point of a curve is the mean of {history.averaged} logged lines.")
    return [Section("run", "The run", (" ".join(text),), tuple(drawn))]


def data_section(maker: Maker, subject: Subject) -> Section | None:
    """What is in the data: sizes, aspects, objects an image, classes."""
    given = {"training": subject.train}
    if subject.split != "train":
        given |= {"validation" if subject.split == "val" else subject.split: subject.source}
    else:
        given["training"] = subject.train or subject.source
    splits = {name: source for name, source in given.items() if source is not None and len(source)}
    boxes = {name: all_objects(source)[0].boxes for name, source in splits.items() if object_counts(source).any()}
    if not boxes:
        return None
    sides = {name: np.sqrt(np.maximum((b[:, 2:] - b[:, :2]).prod(1), 1e-6)) for name, b in boxes.items()}
    aspects = {name: (b[:, 2] - b[:, 0]) / np.maximum(b[:, 3] - b[:, 1], 1e-6) for name, b in boxes.items()}
    counts = {name: object_counts(splits[name]) for name in boxes}
    largest = max(float(values.max()) for values in sides.values())
    smallest = min(float(values.min()) for values in sides.values())
    low, high = np.floor(2 * np.log2(max(smallest, 0.5))) / 2, np.ceil(2 * np.log2(max(largest, 1.0))) / 2 + 0.5
    most = max(int(values.max()) for values in counts.values())
    step = max(1, -(-(most + 1) // 25))
    drawn = [
        maker.figure(
            figures.histograms(
                sides, 2 ** np.arange(low, high + 0.125, 0.25), "square root of the area, pixels", log=True
            ),
            "Boxes by size in the images, %",
        ),
        maker.figure(
            figures.histograms(aspects, 2 ** np.arange(-3, 3.25, 0.25), "width / height", log=True),
            "Boxes by aspect, %",
        ),
        maker.figure(
            figures.histograms(counts, np.arange(0, most + step + 1, step) - 0.5, "objects"),
            "Images by their number of objects, %",
        ),
    ]
    first = next(iter(boxes))
    names = splits[first].distinct_classes
    of_class = class_counts(splits[first], len(names))
    order = np.argsort(-of_class, kind="stable")[:_CLASSES]
    more = f", the {_CLASSES} most frequent of {len(names)}" if len(names) > _CLASSES else ""
    drawn.append(
        maker.figure(
            figures.bars(of_class[order].tolist(), [names[k] for k in order], page=True),
            f"Objects by class, {first}{more}",
        )
    )
    rows = [
        (
            name,
            len(splits[name]),
            len(boxes[name]),
            float(np.median(sides[name])),
            float(np.median(counts[name])),
            int(counts[name].max()),
            int(np.count_nonzero(counts[name] == 0)),
        )
        for name in boxes
    ]
    head = (
        "split",
        "images",
        "objects",
        "median size, pixels",
        "objects an image, median",
        "most",
        "images without any",
    )
    dropped = [
        f"{name}: boxes left out: {', '.join(f'{n:,} × {why}' for why, n in source.dropped.items() if n)}."
        for name, source in splits.items()
        if any(source.dropped.values())
    ]
    return Section("data", "The data", tuple(dropped), tuple(drawn), (Table("Splits", head, rows, digits=1),))


def class_counts(source: Source, classes: int) -> np.ndarray:
    """(K,) objects of each class that there are to learn from."""
    if not object_counts(source).any():
        return np.zeros(classes, np.int64)
    return np.bincount(all_objects(source)[0].labels, minlength=classes)
