"""Subjects of reports without a network: objects at random places, and detections of them with errors."""

from __future__ import annotations

import dataclasses
import html
import json
import pathlib
import re
from typing import Any

import numpy as np

from kpjax.config import Config
from kpjax.data.source import Annotations, Source, make_source
from kpjax.inference.evaluate import measured
from kpjax.inference.outputs import Evaluation
from kpjax.objects import PointSet
from kpjax.show.subject import Subject
from tests import fakes

SIDE = 96
HOSTILE = ("<script>window.hurt=1</script>", "a\"'&<b>", "$x^2$ 犬 " + "long " * 20)


def source_of(
    images: int = 12, names: tuple[str, ...] = HOSTILE, *, annotated: bool = True, points: PointSet | None = None
) -> Source:
    """A split in memory: three objects an image, on one picture of noise; ids of categories are 1, 2, ..."""
    rng = np.random.default_rng(0)
    picture = fakes.png(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8))
    count = 3 * images * annotated
    bbox = np.concatenate([rng.uniform(0, 50, (count, 2)), rng.uniform(12, 46, (count, 2))], axis=1).round(1)
    keypoints = None
    if points is not None:
        xy = bbox[:, None, :2] + bbox[:, None, 2:] * rng.uniform(0.1, 0.9, (count, len(points), 2))
        keypoints = np.concatenate([xy.round(1), np.full((count, len(points), 1), 2.0)], axis=-1)
    return make_source(
        name="drawn <b>at random</b>",
        classes=names,
        category_ids=tuple(range(1, len(names) + 1)),
        image_ids=np.arange(1, images + 1),
        heights=np.full(images, SIDE),
        widths=np.full(images, SIDE),
        files=[f"{i}<i>.png" for i in range(images)],
        annotations=Annotations(
            image=np.repeat(np.arange(images), 3)[:count],
            label=rng.integers(0, len(names), count).astype(np.int32),
            bbox=bbox,
            area=bbox[:, 2:].prod(1),
            crowd=np.zeros(count, bool),
            ids=np.arange(1, count + 1),
            keypoints=keypoints,
        ),
        read=lambda i: picture,
        points=points,
    )


def rows_of(source: Source, seed: int = 0) -> list[dict[str, Any]]:
    """Detections: most objects well, some badly placed, some of another class or twice, and some of nothing."""
    rng, rows = np.random.default_rng(seed), []
    for truth in source.ground_truth()["annotations"]:
        x, y, w, h = truth["bbox"]
        kind = rng.choice(["right", "right", "right", "off", "class", "twice", "none"])
        shift = {"off": 0.4}.get(kind, 0.04) * w
        category = int(rng.integers(1, len(source.classes) + 1)) if kind == "class" else truth["category_id"]
        for _ in range({"none": 0, "twice": 2}.get(kind, 1)):
            score = round(float(rng.uniform(0.05, 1)), 4)
            row = {"image_id": truth["image_id"], "category_id": category, "bbox": [x + shift, y, w, h], "score": score}
            if "keypoints" in truth:
                off = np.array([4.0 if rng.uniform() < 0.3 else 0.5, 0, 0])
                row["keypoints"] = (np.reshape(truth["keypoints"], (-1, 3)) * [1, 1, 0] + off + [0, 0, 0.9]).ravel()
                row["keypoints"] = row["keypoints"].tolist()
            rows.append(row)
        if rng.uniform() < 0.2:
            nothing = {**row, "bbox": [1.0, 1.0, 5.0, 5.0]} if rows else None
            rows += [nothing] if nothing else []
    return rows


def subject_of(
    source: Source | None = None, rows: list[dict[str, Any]] | None = None, workdir: str = "", **more: Any
) -> Subject:
    """A subject with an evaluation of these detections (None: `rows_of`) in that source (None: `source_of`)."""
    source = source_of() if source is None else source
    rows = rows_of(source) if rows is None else rows
    metric = "keypoints" if source.points else "boxes"
    found = Evaluation({}, "", {}, rows, images=len(source), skipped=0, seconds=1.0, metric=metric)
    detector = fakes.marker_detector(points=source.points is not None)
    given: dict[str, Any] = {
        "place": workdir or "runs/one",
        "detector": dataclasses.replace(detector, num_classes=len(source.classes)),
        "config": Config(steps=400),
        "names": source.classes,
        "workdir": workdir,
        "step": 400,
        "source": source,
        "evaluation": measured(found, source),
        "train": source,
        "steps": 400,
    }
    return Subject(**(given | more))


def logged(folder: pathlib.Path, steps: int = 400, every: int = 10) -> str:
    """Write a metrics.jsonl of a run: a falling loss, a rising AP; returns the folder."""
    lines: list[dict[str, Any]] = []
    for step in range(every, steps + 1, every):
        part = {"loss": 3.0 / step + 1, "heatmap": 1.0 / step + 0.5, "wh": 0.5, "grad_norm": 1.0}
        lines.append({"kind": "train", "step": step, **part, "lr": 1e-3, "images_per_s": 10.0, "data_wait": 0.01})
        if step % (10 * every) == 0:
            lines.append({"kind": "eval", "step": step, "AP": step / steps / 2, "AP50": step / steps, "APs": -1.0})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


def cells(text: str, name: str) -> list[str]:
    """In a page, the cells of the table row whose head is `name`."""
    start = text.index(f">{html.escape(name, quote=True).replace('&#x27;', '&#39;').replace('&quot;', '&#34;')}</th>")
    return re.findall(r"<td[^>]*>([^<]*)</td>", text[start : text.index("</tr>", start)])
