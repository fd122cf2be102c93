"""`eval.py --show-dir`: pictures of an evaluated split, each with its detections drawn."""

from __future__ import annotations

import collections
import dataclasses
import os

import numpy as np

from kpjax.data.source import Source
from kpjax.data.turned import pixels_of
from kpjax.errors import DataError
from kpjax.inference.evaluate import Evaluation
from kpjax.inference.outputs import check_output_folder, check_outputs, write_picture
from kpjax.objects import Detections


def show(folder: str, evaluation: Evaluation, source: Source, score_thr: float = 0.3) -> int:
    """Write a JPEG of each evaluated image with its detections drawn, named by image id; returns how many.

    Where they are 3D boxes, these are drawn, and the scene from above, with the annotated ones where there are any.
    Raises ConfigError, before it writes, where the source's images lie in that folder.
    """
    from kpjax.show.boxes3d import draw_scene
    from kpjax.show.drawing import draw_objects, enlarge

    check_pictures(folder, source)
    os.makedirs(folder, exist_ok=True)
    of_image = collections.defaultdict(list)
    for row in evaluation.detections:
        of_image[row["image_id"]].append(row)
    # of all images or of none: an image in which nothing is found is drawn like the others
    cameras = source.cameras if any("box3d" in row for row in evaluation.detections) else None
    names = source.distinct_classes
    label_of = {category: k for k, category in enumerate(source.category_ids)}
    written = 0
    for index in range(evaluation.images):
        rows = of_image[int(source.image_ids[index])]
        try:
            image = pixels_of(source, index)
        except DataError:
            if evaluation.skipped:
                continue
            raise
        boxes = np.array([row["bbox"] for row in rows], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = np.array([label_of[row["category_id"]] for row in rows], np.int32)
        scores = np.array([row["score"] for row in rows], np.float32)
        points = [row["keypoints"] for row in rows if "keypoints" in row]
        keypoints = np.array(points, np.float32).reshape(len(rows), -1, 3) if points else None
        found = Detections(boxes, scores, labels, keypoints=keypoints)
        if cameras is not None:
            boxes3d = np.array([row["box3d"] for row in rows], np.float32).reshape(-1, 7)
            annotated = None if source.labels3d is None else source.labels3d[index]
            found = dataclasses.replace(found, boxes3d=boxes3d)
            drawn = draw_scene(image, found, cameras[index], names, score_thr, annotated)
        else:
            large, found = enlarge(image, found)
            drawn = draw_objects(large, found, names, score_thr, source.points)
        write_picture(_picture(folder, source, index), drawn)
        written += 1
    return written


def check_pictures(folder: str, source: Source) -> None:
    """Raise ConfigError where `show` would write over the source's images, or among them."""
    inputs = source.files if source.on_disk else ()
    check_outputs((_picture(folder, source, i) for i in range(len(source))), inputs, "--show-dir")
    check_output_folder(folder, inputs, "--show-dir")


def _picture(folder: str, source: Source, index: int) -> str:
    return os.path.join(folder, f"{int(source.image_ids[index])}.jpg")
