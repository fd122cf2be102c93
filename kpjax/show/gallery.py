"""The report's pictures as the page's template takes them: errors, and scenes of 3D boxes."""

from __future__ import annotations

import base64
import io
import os
from typing import Any

import numpy as np
from PIL import Image

from kpjax.data.source import object_counts
from kpjax.errors import DataError
from kpjax.images.decode import decode
from kpjax.metrics.findings import BoxErrors
from kpjax.objects import Detections
from kpjax.show.boxes3d import draw_scene
from kpjax.show.cases import Cases
from kpjax.show.subject import Subject

_SCENES = 6  # pictures of 3D boxes
_SCENE_WIDTH = 900  # pixels


def case_rows(cases: Cases) -> list[dict[str, Any]]:
    rows = []
    for case in cases.shown:
        with Image.open(io.BytesIO(case.jpeg)) as image:
            width, height = image.size
        said = [case.name if not case.other or case.other == case.name else f"{case.name}, annotated as {case.other}"]
        if not np.isnan(case.score):
            said.append(f"score {case.score:.2f}")
        if case.overlap:
            said.append(f"IoU {case.overlap:.2f}")
        rows.append(
            {
                "case": case,
                "text": ", ".join(said),
                "file": os.path.basename(case.file),
                "score": -1.0 if np.isnan(case.score) else case.score,
                "data": base64.b64encode(case.jpeg).decode(),
                "width": width,
                "height": height,
            }
        )
    return rows


def case_text(cases: Cases | None, errors: BoxErrors | None) -> str:
    if cases is None or errors is None:
        return ""
    parts = []
    for kind, total in cases.totals.items():
        shown = sum(case.kind == kind for case in cases.shown)
        parts.append(f"{kind}: {shown if shown == total else f'{shown} of {total:,}'}")
    if not parts:
        return "There is no error to show."
    lost = f" {cases.unreadable} images could not be read." if cases.unreadable else ""
    return (
        f"Wrong detections with the best scores (from {errors.least_score:.3f} on) and the largest objects not found, "
        f"each kind and class in turn. Shown: {', '.join(parts)}.{lost}"
    )


def scenes(subject: Subject, least_score: float) -> list[dict[str, Any]]:
    """Pictures of 3D boxes and of the scene from above: the images with the most objects."""
    source, evaluation = subject.source, subject.evaluation
    if source is None or evaluation is None or source.cameras is None or evaluation.metric != "kitti":
        return []
    label_of = {category: k for k, category in enumerate(source.category_ids)}
    scenes = []
    for index in np.argsort(-object_counts(source)[: evaluation.images], kind="stable")[:_SCENES].tolist():
        image_id = int(source.image_ids[index])
        rows = [row for row in evaluation.detections if row["image_id"] == image_id]
        try:
            image = decode(source.read(index), source.files[index])
        except DataError:
            continue
        boxes = np.array([row["bbox"] for row in rows], np.float32).reshape(-1, 4)
        found = Detections(
            boxes=np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1),
            scores=np.array([row["score"] for row in rows], np.float32),
            labels=np.array([label_of[row["category_id"]] for row in rows], np.int32),
            boxes3d=np.array([row["box3d"] for row in rows], np.float32).reshape(-1, 7),
        )
        annotated = None if source.labels3d is None else source.labels3d[index]
        picture = Image.fromarray(
            draw_scene(image, found, source.cameras[index], source.distinct_classes, least_score, annotated)
        )
        picture.thumbnail((_SCENE_WIDTH, _SCENE_WIDTH))
        file = io.BytesIO()
        picture.save(file, "jpeg", quality=80)
        scenes.append(
            {
                "data": base64.b64encode(file.getvalue()).decode(),
                "width": picture.width,
                "height": picture.height,
                "file": os.path.basename(source.files[index]),
            }
        )
    return scenes
