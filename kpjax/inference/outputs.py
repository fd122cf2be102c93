"""Writing results: detections in COCO's result format, tables of AP, and checks of the output paths."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from kpjax.data.kitti_files import FIELDS, KittiObjects, objects_of_rows, write_objects
from kpjax.data.source import Source
from kpjax.errors import ConfigError, UserError, one_line
from kpjax.objects import Detections


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The results of an evaluation.

    stats: pycocotools' 12 numbers by name ("AP", "AP50", ... see kpjax.metrics.coco.STATS); of a detector whose metric
        is "keypoints" the 10 of KEYPOINT_STATS, and after them the boxes' 12 as "box_AP", "box_AP50", ...; of one whose
        metric is "kitti" what `kpjax.metrics.kitti.stats` says; empty for a split without annotations.  text: the same
        as pycocotools, or KITTI's table, prints it.
    per_class: class name -> AP (of the keypoints, or in 3D, where these are the metric); nan for a class that these
        images have no object of.  Names are those of `Source.distinct_classes`: every class has its own.
    detections: rows of COCO's result format: image_id, category_id (the annotation file's own), bbox
        x y w h in image pixels, score, and keypoints (x, y, score of each) where the detector finds points; box3d (x,
        y, z, h, w, l, yaw) and alpha, see `kpjax.objects.Detections`, where it finds 3D boxes.  AP is that of exactly
        these rows.
    images: how many were evaluated.  skipped: of them, unreadable ones (data.bad_images="skip"); they count
        as images in which nothing was found.  seconds: from the first decoding to the last box, compilation included.
    """

    stats: dict[str, float]
    text: str
    per_class: dict[str, float]
    detections: list[dict[str, Any]]
    images: int
    skipped: int
    seconds: float
    metric: str = "boxes"  # the detector's

    @property
    def ap(self) -> float:
        """COCO's AP, 0..1; -1 where the split has no annotations."""
        return self.stats.get("AP", -1.0)

    @property
    def ap50(self) -> float:
        """AP at an IoU of 0.5."""
        return self.stats.get("AP50", -1.0)

    @property
    def in_short(self) -> str:
        """The numbers that a training run says, e.g. "AP 0.312, AP50 0.540"."""
        if self.metric == "kitti":
            if self.ap < 0:
                return "no AP: no object counts at KITTI's moderate difficulty (25 pixels high or more)"
            return f"KITTI's AP in 3D {self.ap:.3f} (moderate, loose overlaps), in the image {in_the_image(self):.3f}"
        line = f"AP {self.ap:.3f}, AP50 {self.ap50:.3f}"
        return (
            line if self.metric == "boxes" else f"{self.metric} {line}, boxes AP {self.stats.get('box_AP', -1.0):.3f}"
        )


def coco_rows(found: Detections, image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Detections of one image as rows of COCO's result format.

    Boxes are rounded to 1e-4 pixel, scores to 1e-6, points to 1e-2 pixel and their scores to 1e-4, 3D boxes to 1e-4 m
    and radians: there are many.
    """
    boxes = np.asarray(found.boxes, np.float64)
    # Offsets can put the right edge of ExtremeNet's thinnest boxes left of the left one, by less than a cell.
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 0)
    boxes = np.round(np.concatenate([boxes[:, :2], sides], axis=1), 4).tolist()
    scores = np.round(np.asarray(found.scores, np.float64), 6).tolist()
    rows: list[dict[str, Any]] = [
        {"image_id": image_id, "category_id": int(category_ids[label]), "bbox": box, "score": score}
        for box, score, label in zip(boxes, scores, found.labels.tolist(), strict=True)
    ]
    if found.keypoints is not None:
        for row, points in zip(rows, rounded_points(found.keypoints), strict=True):
            row["keypoints"] = points.reshape(-1).tolist()
    if found.boxes3d is not None:
        boxes3d, alpha = (np.round(np.asarray(v, np.float64), 4).tolist() for v in (found.boxes3d, found.alpha))
        for row, box3d, angle in zip(rows, boxes3d, alpha, strict=True):
            row |= {"box3d": box3d, "alpha": angle}
    return rows


def kitti_objects(
    rows: Sequence[dict[str, Any]], image_ids: Sequence[int], classes: dict[int, str]
) -> list[KittiObjects]:
    """Rows of detections with 3D boxes as KITTI's results, a record for each image of `image_ids`.

    classes: category id -> type.  Truncation and occlusion are 0, as the original writes them.
    """
    of_image: dict[int, list[dict[str, Any]]] = {int(image_id): [] for image_id in image_ids}
    for row in rows:
        of_image[row["image_id"]].append(row)
    return [
        objects_of_rows([classes[row["category_id"]] for row in found], np.array([_kitti_row(row) for row in found]))
        if found
        else objects_of_rows((), np.zeros((0, FIELDS)))
        for found in of_image.values()
    ]


def _kitti_row(row: dict[str, Any]) -> list[float]:
    x, y, w, h = row["bbox"]
    location, size, yaw = row["box3d"][:3], row["box3d"][3:6], row["box3d"][6]
    return [0, 0, row["alpha"], x, y, x + w, y + h, *size, *location, yaw, row["score"]]


def write_kitti_results(folder: str, evaluation: Evaluation, source: Source) -> None:
    """Write KITTI's result files, a text file for each evaluated image, named as its image is.

    Text files that are there already are removed first: the benchmark's tools read all of a folder.
    """
    for name in os.listdir(folder):
        if name.endswith(".txt"):
            os.remove(os.path.join(folder, name))
    names = dict(zip(source.category_ids, source.classes, strict=True))
    found = kitti_objects(evaluation.detections, source.image_ids[: evaluation.images].tolist(), names)
    for path, objects in zip(source.files, found, strict=False):
        stem = os.path.splitext(os.path.basename(path))[0]
        result = os.path.join(folder, f"{stem}.txt")
        with _writing(result, result):
            write_objects(result, objects)


def in_the_image(evaluation: Evaluation) -> float:
    """The mean over the classes of KITTI's AP of boxes in the image, moderate, 40 points; -1 where there is none."""
    found = [v for key, v in evaluation.stats.items() if "/2d@" in key and key.endswith("/moderate/R40")]
    known = [value for value in found if value >= 0]
    return float(np.mean(known)) if known else -1.0


def rounded_points(keypoints: Any) -> np.ndarray:
    """Points (..., 3) x, y, score as files hold them: float64, rounded to 1e-2 pixel and 1e-4."""
    points = np.asarray(keypoints, np.float64)
    return np.concatenate([np.round(points[..., :2], 2), np.round(points[..., 2:], 4)], axis=-1)


def write_detections(path: str, evaluation: Evaluation) -> None:
    """Write the rows as JSON in COCO's result format; the file appears only once it is complete."""
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    write_json(path, evaluation.detections)


def write_json(path: str, content: Any, indent: int | None = None) -> None:
    """Write JSON; the file appears only once it is complete.  Raises UserError, one line, where that fails."""
    unfinished = f"{path}.unfinished"
    with _writing(path, unfinished):
        with open(unfinished, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=indent)
        os.replace(unfinished, path)


def write_picture(path: str, picture: np.ndarray) -> None:
    """Write (H, W, 3) uint8 RGB as JPEG or PNG, by the name.  Raises UserError, one line, where that fails."""
    from PIL import Image

    # of a JPEG, colour at every pixel: lines are thin
    options: dict[str, Any] = {"quality": 92, "subsampling": 0} if path.lower().endswith((".jpg", ".jpeg")) else {}
    with _writing(path, path):
        Image.fromarray(picture).save(path, **options)


@contextlib.contextmanager
def _writing(path: str, unfinished: str) -> Iterator[None]:
    """Around writing a file: where that fails, what is there of it is removed, and the error names it.

    A write to a full disk fails without a name.
    """
    try:
        yield
    except BaseException as error:
        if os.path.isfile(unfinished) and os.access(unfinished, os.W_OK):  # else it is an older file, kept from writing
            with contextlib.suppress(OSError):
                os.remove(unfinished)
        if isinstance(error, OSError):
            raise UserError(f"{path}: {error.strerror or one_line(error)}") from error
        raise


def class_table(evaluation: Evaluation) -> str:
    """AP of each class as lines of text, in the order of the classes."""
    width = max([len("class"), *map(len, evaluation.per_class)])
    lines = [f"{'class':<{width}}  AP"]
    for name, ap in evaluation.per_class.items():
        lines.append(f"{name:<{width}}  {'-' if np.isnan(ap) else f'{ap:.3f}'}")
    return "\n".join(lines)


def output_folder(path: str) -> str:
    """Make a folder for results and return it.  Raises ConfigError, one line, where that fails."""
    try:
        os.makedirs(path or ".", exist_ok=True)
        if not os.access(path or ".", os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise ConfigError(f"cannot write to {path}: {(error.strerror or str(error)).lower()}") from None
    return path


def check_outputs(outputs: Iterable[str], inputs: Iterable[str], option: str) -> None:
    """Raise ConfigError where writing one of the files `outputs` would overwrite one of `inputs`, or is a folder.

    option: the flag that named the outputs' folder, for the message.  Files that do not exist are ignored.
    """
    outputs = list(outputs)
    for path in filter(os.path.isdir, outputs):
        raise ConfigError(f"{path} is a folder, and a result of that name would be written; give another {option}")
    there = {path: same for path in outputs if (same := file_identity(path))}
    if not there:
        return
    ours = {file_identity(path) for path in inputs}
    for path, same in there.items():
        if same in ours:
            raise ConfigError(f"{path} is one of the inputs, and a result would overwrite it; give another {option}")


def check_output_folder(folder: str, inputs: Iterable[str], option: str) -> None:
    """Raise ConfigError where one of the files `inputs` lies in `folder`: drawn pictures would be inputs next time.

    option: the flag that named the folder, for the message.
    """
    ours = file_identity(folder)
    if ours and any(file_identity(parent or ".") == ours for parent in {os.path.dirname(path) for path in inputs}):
        raise ConfigError(
            f"{folder} holds images of the input, and pictures would be put among them; give another {option}"
        )


def file_identity(path: str) -> tuple[int, int] | None:
    """Device and inode, which all names of a file share (links, upper and lower case)."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
