"""Plots as PNG: curves, confusion matrices and histograms, drawn with Pillow like the pictures of detections."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from kpjax.data.source import Source
from kpjax.inference.evaluate import Evaluation
from kpjax.inference.outputs import write_picture
from kpjax.metrics.analysis import PCK, RECALLS, Curves, confusion_matrix, keypoint_errors, precision_recall
from kpjax.show.drawing import class_color

_INK, _GRID, _PAPER, _BLUE = (30, 30, 30), (222, 222, 222), (255, 255, 255), (20, 80, 160)
_LEGEND = 26  # lines that a legend has room for; of more classes the lowest AP are named


def write_plots(folder: str, evaluation: Evaluation, source: Source, least_score: float) -> list[str]:
    """Write precision_recall.png, precision_recall_classes.png and confusion_matrix.png; returns their paths.

    Where keypoints are the metric these are the boxes', and the keypoints' own stand beside them:
    keypoints_precision_recall.png, keypoints_precision_recall_classes.png and keypoints_correct.png.
    least_score: of a detection that the confusion matrix counts.
    """
    truth, found = source.ground_truth(), evaluation.detections
    image_ids = [int(i) for i in source.image_ids[: evaluation.images]]
    classes = dict(zip(source.category_ids, source.classes, strict=True))
    counts = confusion_matrix(truth, found, image_ids, source.category_ids, least_score=least_score)
    pictures = _curve_pictures(precision_recall(truth, found, image_ids, classes), "boxes", "IoU")
    pictures["confusion_matrix.png"] = draw_matrix(
        counts,
        source.distinct_classes,
        f"objects (rows) as detected (columns), score from {least_score:g}, IoU from 0.5",
    )
    if evaluation.metric == "keypoints":
        assert source.points is not None
        curves = precision_recall(truth, found, image_ids, classes, source.points)
        own = _curve_pictures(curves, "keypoints", "OKS")
        errors = keypoint_errors(truth, found, image_ids, source.points)
        own["correct.png"] = draw_bars(
            [round(100 * share) for share in np.nan_to_num(errors.pck).tolist()],
            [n if c else f"{n}: none" for n, c in zip(source.points.names, errors.count.tolist(), strict=True)],
            f"keypoints at most {PCK:g} of the box's longer side off (PCK@{PCK:g}), % of those labelled; "
            f"{errors.objects - errors.missed} of {errors.objects} objects found",
            "keypoint",
        )
        pictures |= {f"keypoints_{name}": picture for name, picture in own.items()}
    os.makedirs(folder, exist_ok=True)
    paths = []
    for name, picture in pictures.items():
        paths.append(os.path.join(folder, name))
        write_picture(paths[-1], picture)
    return paths


def _curve_pictures(curves: Curves, what: str, measure: str) -> dict[str, np.ndarray]:
    """what: "boxes" or "keypoints".  measure: what is compared with a threshold, "IoU" or "OKS"."""
    title = f"precision against recall of {what}"
    sizes = {f"{name}, {measure} 0.50:0.95": curve for name, curve in curves.by_size.items()}
    return {
        "precision_recall.png": draw_curves(curves.by_threshold | sizes, f"{title}, mean over the classes"),
        "precision_recall_classes.png": draw_curves(curves.by_class, f"{title}, {measure} 0.50"),
    }


def draw_curves(curves: dict[str, np.ndarray], title: str, side: int = 480) -> np.ndarray:
    """Precision (101,) at the recalls 0 .. 1 by name -> an RGB picture with a legend that states each mean.

    A curve that is nan throughout (nothing of its kind in the images) is left out of the drawing, not of the legend.
    """
    font, left, top = ImageFont.load_default(14), 60, 60
    means = {name: float(np.mean(curve)) for name, curve in curves.items()}
    named = list(curves)
    if len(named) > _LEGEND:
        named = sorted(named, key=lambda name: (np.isnan(means[name]), means[name]))[: _LEGEND - 1]
    lines = {name: f"{'-' if np.isnan(means[name]) else f'{means[name]:.3f}'}  {name}" for name in named}
    more = [f"... and {len(curves) - len(named)} of higher AP"] if len(named) < len(curves) else []
    wide = int(max(font.getlength(text) for text in [*lines.values(), *more, ""])) + 50
    picture = Image.new("RGB", (left + side + 20 + wide, top + side + 50), _PAPER)
    canvas = ImageDraw.Draw(picture)
    canvas.text((left, 10), title, font=font, fill=_INK)
    for i in range(11):
        x, y = left + side * i / 10, top + side * (1 - i / 10)
        canvas.line((x, top, x, top + side), fill=_GRID)
        canvas.line((left, y, left + side, y), fill=_GRID)
        if i % 2 == 0:
            canvas.text((x, top + side + 8), f"{i / 10:.1f}", font=font, fill=_INK, anchor="ma")
            canvas.text((left - 8, y), f"{i / 10:.1f}", font=font, fill=_INK, anchor="rm")
    canvas.text((left + side / 2, top + side + 28), "recall", font=font, fill=_INK, anchor="ma")
    canvas.text((8, top - 12), "precision", font=font, fill=_INK, anchor="lb")
    for i, (name, curve) in enumerate(curves.items()):
        if not np.isnan(curve).any():
            points = [(left + side * r, top + side * (1 - p)) for r, p in zip(RECALLS, curve, strict=True)]
            canvas.line(points, fill=class_color(i), width=3 if name in lines else 1, joint="curve")
    x, y = left + side + 20, top
    for text, color in [(lines[n], class_color(list(curves).index(n))) for n in named] + [(t, _PAPER) for t in more]:
        canvas.rectangle((x, y + 4, x + 22, y + 9), fill=color)
        canvas.text((x + 30, y), text, font=font, fill=_INK)
        y += 19
    return np.array(picture)


def draw_matrix(counts: np.ndarray, classes: Sequence[str], title: str) -> np.ndarray:
    """A confusion matrix (K + 1, K + 1), see `analysis.confusion_matrix`, as an RGB picture.

    Shades are parts of a row (of the objects of a class); few classes have their counts written in.
    """
    count = len(counts)
    cell = 52 if count <= 22 else 16
    font = ImageFont.load_default(14 if cell > 20 else 12)
    rows, columns = [*classes, "nothing"], [*classes, "missed"]
    left = int(max(font.getlength(name) for name in rows)) + 20
    top = 40 + int(max(font.getlength(name) for name in columns)) + 20
    width = max(left + count * cell, left + int(font.getlength(title))) + 20
    picture = Image.new("RGB", (width, top + count * cell + 20), _PAPER)
    canvas = ImageDraw.Draw(picture)
    canvas.text((left, 12), title, font=font, fill=_INK)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    for i in range(count):
        canvas.text((left - 8, top + (i + 0.5) * cell), rows[i], font=font, fill=_INK, anchor="rm")
        _upright(picture, columns[i], left + (i + 0.5) * cell, top - 8, font)
        for j in range(count):
            box = (left + j * cell, top + i * cell, left + (j + 1) * cell, top + (i + 1) * cell)
            color = tuple(round(p + (b - p) * float(share[i, j])) for p, b in zip(_PAPER, _BLUE, strict=True))
            canvas.rectangle(box, fill=color, outline=_GRID)
            if cell > 20 and counts[i, j]:
                middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
                ink = _PAPER if share[i, j] > 0.5 else _INK
                canvas.text(middle, str(counts[i, j]), font=font, fill=ink, anchor="mm")
    return np.array(picture)


def draw_bars(counts: Sequence[int], names: Sequence[str], title: str, unit: str) -> np.ndarray:
    """A histogram as an RGB picture: a bar for each name, from left to right, its count above it.

    unit: what the names are, written below them.
    """
    font, small = ImageFont.load_default(14), ImageFont.load_default(11)
    wide = max(14, int(max(small.getlength(text) for text in [*names, *map(_short_count, counts)])) + 6)
    left, top, tall = 20, 70, 300
    lines = max(int(font.getlength(text)) for text in (title, unit))
    picture = Image.new("RGB", (left + max(wide * len(names), lines) + 20, top + tall + 60), _PAPER)
    canvas = ImageDraw.Draw(picture)
    canvas.text((left, 12), title, font=font, fill=_INK)
    most = max(1, max(counts, default=1))
    for i, (count, name) in enumerate(zip(counts, names, strict=True)):
        x, y = left + wide * i, top + tall * (1 - count / most)
        if count:
            canvas.rectangle((x + 1, min(y, top + tall - 1), x + wide - 2, top + tall), fill=_BLUE)
            canvas.text((x + wide / 2, y - 4), _short_count(count), font=small, fill=_INK, anchor="ms")
        canvas.text((x + wide / 2, top + tall + 6), name, font=small, fill=_INK, anchor="ma")
    canvas.line((left, top + tall, left + wide * len(names), top + tall), fill=_INK)
    canvas.text((left, top + tall + 34), unit, font=font, fill=_INK)
    return np.array(picture)


def _short_count(count: int) -> str:
    if count < 10_000:
        return str(count)
    return f"{count / 1e3:.0f}k" if count < 1_000_000 else f"{count / 1e6:.1f}M"


def _upright(picture: Image.Image, text: str, x: float, bottom: float, font: Any) -> None:
    """Text that runs upwards from `bottom`, around the column x."""
    label = Image.new("L", (int(font.getlength(text)) + 4, 20))
    ImageDraw.Draw(label).text((0, 2), text, font=font, fill=255)
    label = label.rotate(90, expand=True)
    picture.paste(_INK, (round(x - label.width / 2), round(bottom - label.height)), label)
