"""The worst errors of an evaluated split as small pictures, for the report's page."""

from __future__ import annotations

import collections
import dataclasses
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from kpjax.data.source import Source
from kpjax.errors import DataError
from kpjax.images.decode import decode
from kpjax.metrics.errors_by_kind import KINDS, MISSED, RIGHT
from kpjax.metrics.findings import BoxErrors, Findings
from kpjax.objects import PointSet
from kpjax.show.skeleton import draw_skeleton

FAINT, POINTS_OFF = "below the threshold", "keypoints"  # kinds of a picture that are none of KINDS
CASE_KINDS = (*KINDS, FAINT, POINTS_OFF)
MOST_PICTURES = 120
SIDE = 200  # pixels of a picture's sides
QUALITY = 80  # of its JPEG
_LEAST_REGION = 40  # pixels of the image that a picture shows at least
_ANNOTATED, _FOUND, _RIM = (64, 156, 255), (255, 150, 0), (0, 0, 0)  # told apart by any sort of colour vision
_POINT_SCORE = 0.1  # as in `kpjax.show.drawing`


@dataclasses.dataclass(frozen=True)
class Case:
    """One error.  kind: of CASE_KINDS.  name: the class of the detection, of an object not found that of the object.
    other: the class of the object that a detection is of; "": none.  score: of the detection; nan: there is none.
    overlap: IoU (of keypoints: OKS is below 0.5) of the two.  side: pixels of the image, the square root of the area.
    jpeg: the picture, at most SIDE x SIDE.
    """

    kind: str
    name: str
    other: str
    score: float
    overlap: float
    side: float
    image_id: int
    file: str
    jpeg: bytes


@dataclasses.dataclass(frozen=True)
class Cases:
    """The pictures, and of each kind how many errors there are in all.  unreadable: images that could not be shown."""

    shown: tuple[Case, ...]
    totals: dict[str, int]
    unreadable: int


@dataclasses.dataclass(frozen=True)
class _Error:
    """An error before it is drawn.  found, near: the row of the detection, and that of the object, if any."""

    kind: str
    label: int
    worth: float  # how bad it is
    found: dict[str, Any] | None
    near: dict[str, Any] | None
    overlap: float


def worst_cases(
    ground_truth: dict[str, Any],
    detections: list[dict[str, Any]],
    source: Source,
    boxes: Findings,
    errors: BoxErrors,
    keypoints: Findings | None = None,
    most: int = MOST_PICTURES,
) -> Cases:
    """Wrong detections with the best scores, and the largest objects not found.

    Each kind and each class in it gets its turn until there are `most`.  keypoints: the findings of keypoints; right
    boxes with an OKS below 0.5 are then a kind of their own.
    """
    listed = list(_errors(ground_truth, detections, boxes, errors, keypoints))
    totals = collections.Counter(error.kind for error in listed)
    index_of = {int(image): i for i, image in enumerate(source.image_ids)}
    annotated = collections.defaultdict(list)
    for row in ground_truth["annotations"]:
        if not row["iscrowd"]:
            annotated[row["image_id"]].append(row)
    of_image = collections.defaultdict(list)
    for error in _in_turn(listed, most):
        of_image[(error.found or error.near or {})["image_id"]].append(error)
    names = source.distinct_classes
    name_of = dict(zip(source.category_ids, names, strict=True))
    shown, unreadable = [], 0
    for image_id, here in of_image.items():
        index = index_of[image_id]
        try:
            image = decode(source.read(index), source.files[index])
        except DataError:
            unreadable += 1
            continue
        for error in here:
            row = error.found or error.near or {}
            shown.append(
                Case(
                    kind=error.kind,
                    name=names[error.label],
                    other=name_of[error.near["category_id"]] if error.near and error.found else "",
                    score=float(error.found["score"]) if error.found else float("nan"),
                    overlap=error.overlap,
                    side=float(np.sqrt(max(row["bbox"][2], 0) * max(row["bbox"][3], 0))),
                    image_id=int(image_id),
                    file=source.files[index],
                    jpeg=_picture(image, error, annotated[image_id], source.points),
                )
            )
    order = {kind: k for k, kind in enumerate(CASE_KINDS)}
    shown.sort(key=lambda c: (order[c.kind], -np.nan_to_num(c.score), -c.side))
    return Cases(tuple(shown), {kind: totals[kind] for kind in CASE_KINDS if totals[kind]}, unreadable)


def _errors(
    ground_truth: dict[str, Any],
    detections: list[dict[str, Any]],
    boxes: Findings,
    errors: BoxErrors,
    keypoints: Findings | None,
) -> Iterator[_Error]:
    row_of = {int(row["id"]): row for row in ground_truth["annotations"]}
    pairs, kinds, near = boxes.matches, errors.errors.kind.tolist(), errors.errors.near.tolist()
    objects = [row_of[number] for number in pairs.object_id.tolist()]
    for d, kind in enumerate(kinds):
        if kind != RIGHT and pairs.score[d] >= errors.least_score:
            of = objects[near[d]] if near[d] >= 0 else None
            row, overlap = detections[int(pairs.row[d])], float(errors.errors.iou[d])
            yield _Error(KINDS[kind], int(pairs.label[d]), float(pairs.score[d]), row, of, overlap)
    for g, theirs in enumerate(objects):
        label, side = int(pairs.object_label[g]), float(theirs["bbox"][2] * theirs["bbox"][3])
        if errors.errors.missed[g]:
            yield _Error(KINDS[MISSED], label, side, None, theirs, 0.0)
        elif errors.faint[g]:
            finder = int(pairs.found_by[g])
            row, overlap = detections[int(pairs.row[finder])], float(errors.errors.iou[finder])
            yield _Error(FAINT, label, side, row, theirs, overlap)
    if keypoints is None:
        return
    right = {int(pairs.row[d]): d for d, kind in enumerate(kinds) if kind == RIGHT}
    for row_number, score, correct in zip(
        keypoints.matches.row.tolist(), keypoints.matches.score.tolist(), keypoints.matches.correct, strict=True
    ):
        number = right.get(row_number)
        if number is None or correct or score < errors.least_score:
            continue
        theirs, overlap = objects[near[number]], float(errors.errors.iou[number])
        if theirs.get("num_keypoints"):
            yield _Error(POINTS_OFF, int(pairs.label[number]), score, detections[row_number], theirs, overlap)


def _in_turn(listed: list[_Error], most: int) -> list[_Error]:
    """At most `most` errors: the worst of each kind and class, then the second of each, and so on."""
    groups = collections.defaultdict(list)
    for error in listed:
        groups[error.kind, error.label].append(error)
    for group in groups.values():
        group.sort(key=lambda error: -error.worth)
    by_kind: dict[str, list[_Error]] = collections.defaultdict(list)
    for (kind, _), group in groups.items():
        by_kind[kind] += [dataclasses.replace(error, worth=-place) for place, error in enumerate(group)]
    ranked = []
    for group in by_kind.values():
        group.sort(key=lambda error: -error.worth)  # stable: the classes' worst ones, then their second ones
        ranked += list(enumerate(group))
    ranked.sort(key=lambda pair: pair[0])
    return [error for _, error in ranked[:most]]


def _picture(image: np.ndarray, error: _Error, annotated: list[dict[str, Any]], points: PointSet | None) -> bytes:
    """The region around an error, with the objects that are annotated there and the detection, as JPEG."""
    rows = [row for row in (error.found, error.near) if row]
    corners = np.array([[*row["bbox"][:2], *np.add(row["bbox"][:2], row["bbox"][2:])] for row in rows], np.float64)
    low, high = corners[:, :2].min(0), corners[:, 2:].max(0)
    size = np.array(image.shape[1::-1])
    side = np.minimum(max(_LEAST_REGION, 1.5 * float((high - low).max())), size)
    start = np.clip((low + high) / 2 - side / 2, 0, size - side)
    left, top = np.floor(start).astype(int)
    right, bottom = np.minimum(np.ceil(start + side).astype(int), size)
    zoom = SIDE / max(right - left, bottom - top)
    cut = Image.fromarray(image[top:bottom, left:right])
    picture = cut.resize(
        (max(1, round(cut.width * zoom)), max(1, round(cut.height * zoom))),
        Image.Resampling.BICUBIC if zoom > 1 else Image.Resampling.BOX,
    )
    canvas, origin = ImageDraw.Draw(picture), np.array([left, top])

    def draw(row: dict[str, Any], color: tuple[int, int, int], line: int) -> None:
        x, y = (np.array(row["bbox"][:2]) - origin) * zoom
        w, h = np.maximum(np.array(row["bbox"][2:]) * zoom, 1)
        canvas.rectangle((x - 1, y - 1, x + w + 1, y + h + 1), outline=_RIM)
        canvas.rectangle((x, y, x + w, y + h), outline=color, width=line)

    for row in annotated:
        if row is not error.near:
            draw(row, _ANNOTATED, 1)
    for one, color in ((error.near, _ANNOTATED), (error.found, _FOUND)):
        if one:
            draw(one, color, 3)
            if error.kind == POINTS_OFF and "keypoints" in one:
                xyv = np.reshape(one["keypoints"], (-1, 3))
                there = xyv[:, 2] > (0 if one is error.near else _POINT_SCORE)
                plain = None if points is None else PointSet(points.names, tuple(range(len(points))), points.edges)
                hidden = np.zeros(len(xyv), bool)  # one colour for each of the two, whatever the side
                draw_skeleton(canvas, (xyv[:, :2] - origin) * zoom, there, hidden, plain, color, _RIM, 2)
    file = io.BytesIO()
    picture.save(file, "jpeg", quality=QUALITY)
    return file.getvalue()
