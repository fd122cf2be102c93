"""A source: one split of a data set, open for random access by record index.

Folders of images with a COCO JSON (`kpjax.data.coco`), KITTI's folders (`kpjax.data.kitti`) and prepared TensorFlow
Datasets (`kpjax.data.tfds`) all give a `Source`; `kpjax.data.opening` opens any.  The pipeline and the evaluation use
nothing else.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from kpjax.data.kitti_files import KittiObjects
from kpjax.errors import ConfigError, DataError
from kpjax.extreme_points import EXTREME_POINTS
from kpjax.objects import ALL_CLASSES, IGNORE, OBJECT, UNLABELLED, Objects, PointSet, Solid, distinct_names

CROWD = "crowd"
REGION = "region to ignore"
OUTSIDE = "outside the image"
NO_AREA = "no area"
UNKNOWN_ANGLE = 9  # radians: KITTI's -10 is none
LARGEST = 1e9  # largest number in a box: results computed from it have to fit in float32

Mistake = Callable[[DataError], None]


def stop(error: DataError) -> None:
    """The default of `mistake`: raise the error."""
    raise error


@dataclasses.dataclass(frozen=True)
class Annotations:
    """All A annotated objects of a split as arrays, crowds, regions and empty boxes included.

    image: (A,) int64 record index.  label: (A,) int32 class index, or ALL_CLASSES.  bbox: (A, 4) float64 x, y, width,
    height in image pixels.  area: (A,) float64 square pixels (COCO: of the mask).  crowd: (A,) bool.
    ids: (A,) int64, unique.  keypoints: (A, J, 3) float64 x, y in image pixels and COCO's visibility, where the split
    was opened with its keypoints.  solid: (A, 5) float64 depth, height, width and length in metres, and alpha in
    radians, where the objects are known in 3D.  region: (A,) bool, which are regions to ignore and no objects
    whatever `config.data.crowds` says (KITTI's DontCare and neighbouring types); None: none is.
    """

    image: np.ndarray
    label: np.ndarray
    bbox: np.ndarray
    area: np.ndarray
    crowd: np.ndarray
    ids: np.ndarray
    keypoints: np.ndarray | None = None
    solid: np.ndarray | None = None
    region: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Source:
    """Random access to N images and their boxes, in the order of the annotation file.

    name: for messages.
    classes, category_ids: class k's name and COCO id, in ascending order of the id.
    image_ids: (N,) int64.  heights, widths: (N,) int32, pixels, as the annotations state.
    files: N absolute paths where `on_disk`, else names for messages.
    objects: N `Objects` of NumPy arrays (n_i, ...) in image pixels: what training gets.  Those to learn from come
        first, in the file's order, then the crowds and regions that training ignores.  No box without area, none
        wholly outside its image; a box partly outside keeps its corners.
    dropped: reason -> number of annotated boxes that training leaves out.
    read: index -> the encoded image file; raises DataError where it cannot be read.
    ground_truth: () -> a COCO instances dictionary of all annotations for pycocotools.
    annotations: all annotated objects.
    points: what the objects' points are; None: they have none.
    cameras: (N, 3, 4) float64, which projects metres to each image's pixels; None: they are not known.
    labels3d: N `KittiObjects`, all lines of the label files, which the benchmark of 3D boxes reads; None: there are
        none.  `objects` then have `solid`.
    exif: `config.data.exif`, whether images are turned as their EXIF orientation says.
    """

    name: str
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    image_ids: np.ndarray
    heights: np.ndarray
    widths: np.ndarray
    files: tuple[str, ...]
    objects: tuple[Objects, ...]
    dropped: dict[str, int]
    read: Callable[[int], bytes]
    ground_truth: Callable[[], dict[str, Any]]
    annotations: Annotations
    on_disk: bool = False
    points: PointSet | None = None
    cameras: np.ndarray | None = None
    labels3d: tuple[KittiObjects, ...] | None = None
    exif: str = "size"

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def distinct_classes(self) -> tuple[str, ...]:
        """(K,) the classes' names, with their COCO ids where two share one: for tables, pictures and keys."""
        return tuple(distinct_names(dict(zip(self.category_ids, self.classes, strict=True))).values())


def without_empty_images(source: Source) -> Source:
    """The source less the images that have no object to learn from."""
    kept = np.flatnonzero(object_counts(source))
    if len(kept) == len(source):
        return source
    place = np.full(len(source), -1, np.int64)
    place[kept] = np.arange(len(kept))
    there = place[source.annotations.image] >= 0
    rows = {f.name: getattr(source.annotations, f.name) for f in dataclasses.fields(Annotations)}
    annotations = Annotations(**{name: rows[name] if rows[name] is None else rows[name][there] for name in rows})
    ids = set(source.image_ids[kept].tolist())

    def ground_truth() -> dict[str, Any]:
        whole = source.ground_truth()
        images = [image for image in whole["images"] if image["id"] in ids]
        return whole | {
            "images": images,
            "annotations": [row for row in whole["annotations"] if row["image_id"] in ids],
        }

    return dataclasses.replace(
        source,
        image_ids=source.image_ids[kept],
        heights=source.heights[kept],
        widths=source.widths[kept],
        files=tuple(source.files[i] for i in kept),
        objects=tuple(source.objects[i] for i in kept),
        cameras=None if source.cameras is None else source.cameras[kept],
        labels3d=None if source.labels3d is None else tuple(source.labels3d[i] for i in kept),
        read=lambda i: source.read(int(kept[i])),
        ground_truth=ground_truth,
        annotations=dataclasses.replace(annotations, image=place[annotations.image]),
    )


def without_solid(source: Source) -> Source:
    """The source as a detector of boxes reads it: without what is known in 3D, and without cameras."""
    if source.annotations.solid is None and source.labels3d is None:
        return source
    return dataclasses.replace(
        source,
        objects=tuple(dataclasses.replace(objects, solid=None) for objects in source.objects),
        annotations=dataclasses.replace(source.annotations, solid=None),
        cameras=None,
        labels3d=None,
    )


def fingerprint(source: Source) -> str:
    """A short text that differs where two splits differ in classes, images, objects or cameras.

    Files and folders may differ.
    """
    points = () if source.points is None else (source.points.names,)
    digest = hashlib.sha256(repr((source.classes, source.category_ids, *points)).encode())
    for array in (source.image_ids, source.heights, source.widths, *jax.tree.leaves(source.objects)):
        digest.update(np.ascontiguousarray(array).tobytes())
    for camera in () if source.cameras is None else source.cameras:
        digest.update(np.ascontiguousarray(camera).tobytes())
    for labels in source.labels3d or ():  # what the benchmark of 3D boxes reads
        digest.update(repr(labels.types).encode())
        for array in (labels.truncation, labels.occlusion, labels.boxes, labels.size, labels.location, labels.yaw):
            digest.update(np.ascontiguousarray(array).tobytes())
    return f"{len(source)} images, {int(object_counts(source).sum())} boxes, {digest.hexdigest()[:12]}"


def require_boxes(source: Source) -> None:
    """Raise ConfigError where there is nothing to train on."""
    if not object_counts(source).any():
        raise ConfigError(f"{source.name} has no box to train on; give annotations with boxes in config.data.train")


def require_same_classes(val: Source, train: Source) -> None:
    """Raise ConfigError where the validation split has other classes than the training split."""
    if val.classes != train.classes:
        odd = difference(val.classes, train.classes)
        raise ConfigError(
            f"{val.name} lists other classes than {train.name} ({odd}); both splits need the same categories"
        )


def require_keypoints(source: Source, split: str = "train") -> None:
    """Raise ConfigError where there is no keypoint to learn from, or to measure with.  split: "train" or "val"."""
    if source.points is None:
        raise ConfigError(f"{source.name} was opened without its keypoints; open it with keypoints=True")
    if not any((of_image.seen[of_image.valid] > UNLABELLED).any() for of_image in source.objects):
        what = "to train on" if split == "train" else "to measure with"
        raise ConfigError(
            f"{source.name} has no labelled keypoint {what}; give annotations with keypoints in config.data.{split}"
        )


def require_outlines(source: Source) -> None:
    """Raise ConfigError where no object to learn from has extreme points."""
    if source.points != EXTREME_POINTS:
        raise ConfigError(f"{source.name} was opened without its outlines; open it with outlines=True")
    if not any((of_image.seen[of_image.valid] > UNLABELLED).any() for of_image in source.objects):
        raise ConfigError(
            f"{source.name} has no object with an outline, from which extreme points are learnt; give annotations with "
            "a segmentation (polygons or RLE) in config.data.train"
        )


def require_solid(source: Source) -> None:
    """Raise DataError where an object to learn from is not known in 3D: KITTI writes -1, -1000 and -10 then."""
    for file, objects in zip(source.files, source.objects, strict=True):
        solid = objects.solid
        if solid is None:
            raise ConfigError(f"{source.name} was opened without its 3D boxes; open it with solid=True")
        known = (solid.depth > 0) & (solid.size > 0).all(-1) & (np.abs(solid.orientation) < UNKNOWN_ANGLE)
        bad = np.flatnonzero(objects.valid & ~known)
        if len(bad):
            k, (h, w, length) = bad[0], solid.size[bad[0]].tolist()
            raise DataError(
                f"{file}: a {source.classes[objects.labels[k]]} has no 3D box (size {h:g} {w:g} {length:g} m, depth "
                f"{solid.depth[k]:g} m, alpha {solid.orientation[k]:g}); complete its label, or call it DontCare"
            )


def require_same_points(val: Source, train: Source) -> None:
    """Raise ConfigError where the validation split has other keypoints than the training split."""
    if val.points is not None and train.points is not None and val.points.names != train.points.names:
        odd = difference(val.points.names, train.points.names)
        raise ConfigError(f"{val.name} lists other keypoints than {train.name} ({odd}); both splits need the same")


def difference(names: Sequence[str], others: Sequence[str]) -> str:
    """In what two lists of names differ, in words: the first three names that one lacks."""
    return ", ".join(sorted(set(names) ^ set(others))[:3]) or "in another order"


def count_over(source: Source, max_boxes: int) -> int:
    """How many boxes of the split training leaves out because their image has more than `max_boxes`."""
    return int(np.maximum(object_counts(source) - max_boxes, 0).sum())


def object_counts(source: Source) -> np.ndarray:
    """(N,) int64: how many objects each image has to learn from."""
    return np.array([np.count_nonzero(objects.valid) for objects in source.objects], np.int64)


def all_objects(source: Source) -> tuple[Objects, np.ndarray]:
    """All objects to learn from, (n, ...), image after image, and their images' numbers (n,) int64."""
    counts = object_counts(source)
    first = [jax.tree.map(lambda x, c=c: x[:c], objects) for objects, c in zip(source.objects, counts, strict=True)]
    return jax.tree.map(lambda *parts: np.concatenate(parts), *first), np.repeat(np.arange(len(source)), counts)


def make_source(
    *,
    name: str,
    classes: Sequence[str],
    category_ids: Sequence[int],
    image_ids: np.ndarray,
    heights: np.ndarray,
    widths: np.ndarray,
    files: Sequence[str],
    annotations: Annotations,
    read: Callable[[int], bytes],
    on_disk: bool = False,
    file_names: Sequence[str] | None = None,
    crowds: str = "ignore",
    points: PointSet | None = None,
    cameras: np.ndarray | None = None,
    labels3d: Sequence[KittiObjects] | None = None,
    dropped: Mapping[str, int] = MappingProxyType({}),
) -> Source:
    """A Source whose objects and ground truth both follow from `annotations`.

    file_names: what the ground truth calls the images; `files` where None.  crowds: "ignore" or "train", see
    `config.data.crowds`.  points: what `annotations.keypoints` are.  cameras, labels3d: see `Source`.  dropped: reasons
    and numbers of boxes that are not among the annotations.
    """
    reasons = left_out(annotations, heights, widths, crowds)
    ignored = np.isin(reasons, (CROWD, REGION)) & (_without_place(annotations, heights, widths) == "")
    keep = (reasons == "") | ignored
    # A stable sort keeps the order of the annotation file within an image.
    order = np.flatnonzero(keep)[np.lexsort((ignored[keep], annotations.image[keep]))]
    cuts = np.searchsorted(annotations.image[order], np.arange(1, len(image_ids)))
    flat = _objects(annotations, order, ignored)
    leaves, structure = jax.tree.flatten(flat)
    split = [np.split(leaf, cuts) for leaf in leaves]
    objects = tuple(jax.tree.unflatten(structure, [parts[i] for parts in split]) for i in range(len(image_ids)))
    names = tuple(file_names if file_names is not None else files)

    def ground_truth() -> dict[str, Any]:
        return _instances(classes, category_ids, image_ids, heights, widths, names, annotations, points)

    return Source(
        name=name,
        classes=tuple(classes),
        category_ids=tuple(int(c) for c in category_ids),
        image_ids=np.asarray(image_ids, np.int64),
        heights=np.asarray(heights, np.int32),
        widths=np.asarray(widths, np.int32),
        files=tuple(files),
        objects=objects,
        dropped={str(k): n for k, n in sorted((Counter(reasons[reasons != ""]) + Counter(dropped)).items())},
        read=read,
        ground_truth=ground_truth,
        annotations=annotations,
        on_disk=on_disk,
        points=points,
        cameras=None if cameras is None else np.asarray(cameras, np.float64),
        labels3d=None if labels3d is None else tuple(labels3d),
    )


def _objects(annotations: Annotations, order: np.ndarray, ignored: np.ndarray) -> Objects:
    """The annotations `order` as flat `Objects` (n, ...) in image pixels."""
    x, y, w, h = annotations.bbox[order].T
    keypoints = None if annotations.keypoints is None else annotations.keypoints[order]
    solid = None if annotations.solid is None else annotations.solid[order].astype(np.float32)
    return Objects(
        boxes=np.stack([x, y, x + w, y + h], axis=1).astype(np.float32),
        labels=annotations.label[order].astype(np.int32),
        role=np.where(ignored[order], IGNORE, OBJECT).astype(np.int32),
        points=None if keypoints is None else keypoints[..., :2].astype(np.float32),
        seen=None if keypoints is None else keypoints[..., 2].astype(np.int32),
        solid=None if solid is None else Solid(depth=solid[:, 0], size=solid[:, 1:4], orientation=solid[:, 4]),
    )


def left_out(annotations: Annotations, heights: np.ndarray, widths: np.ndarray, crowds: str = "ignore") -> np.ndarray:
    """Why training leaves each annotated box out, (A,) strings: REGION, CROWD, NO_AREA, OUTSIDE, or "" for one it uses.

    crowds: "ignore" or "train", see `config.data.crowds`.
    """
    crowd = annotations.crowd & (crowds == "ignore")
    region = np.zeros_like(crowd) if annotations.region is None else annotations.region
    return np.select([region, crowd], [REGION, CROWD], default=_without_place(annotations, heights, widths))


def _without_place(annotations: Annotations, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Which boxes have no place in their image, (A,) strings: NO_AREA, OUTSIDE, or ""."""
    x, y, w, h = annotations.bbox.T
    right, bottom = np.asarray(widths)[annotations.image], np.asarray(heights)[annotations.image]
    empty = (w <= 0) | (h <= 0)
    # The originals clip to the image and then drop what has no area left.
    outside = (x >= right) | (y >= bottom) | (x + w <= 0) | (y + h <= 0)
    return np.select([empty, outside], [NO_AREA, OUTSIDE], default="")


def truth_ids(ids: np.ndarray) -> np.ndarray:
    """The annotations' ids (A,) for pycocotools, which marks an unmatched detection with the ground-truth id 0.

    So a real id 0 could never be found: ids that are not all positive become 1, 2, 3, ...
    """
    return np.arange(1, len(ids) + 1) if len(ids) and ids.min() <= 0 else ids


def _instances(
    classes: Sequence[str],
    category_ids: Sequence[int],
    image_ids: np.ndarray,
    heights: np.ndarray,
    widths: np.ndarray,
    files: Sequence[str],
    annotations: Annotations,
    points: PointSet | None,
) -> dict[str, Any]:
    ids, keypoints = truth_ids(annotations.ids), annotations.keypoints
    ignored = annotations.crowd if annotations.region is None else annotations.crowd | annotations.region
    # pycocotools knows regions of one class alone: one of all classes is a row of each, with ids of their own.
    unused = itertools.count(int(ids.max(initial=0)) + 1)
    rows: list[tuple[int, int, int]] = []  # annotation, class, id
    for a, label in enumerate(annotations.label.tolist()):
        of_all = label == ALL_CLASSES
        rows += [(a, k, next(unused)) for k in range(len(classes))] if of_all else [(a, label, int(ids[a]))]
    return {
        "info": {},
        "licenses": [],
        "images": [
            {"id": int(i), "file_name": f, "height": int(h), "width": int(w)}
            for i, f, h, w in zip(image_ids, files, heights, widths, strict=True)
        ],
        "annotations": [
            {
                "id": number,
                "image_id": int(image_ids[annotations.image[a]]),
                "category_id": int(category_ids[label]),
                "bbox": annotations.bbox[a].tolist(),
                "area": float(annotations.area[a]),
                "iscrowd": int(ignored[a]),
                **({} if keypoints is None else _coco_keypoints(keypoints[a])),
            }
            for a, label, number in rows
        ],
        "categories": [
            {"id": int(i), "name": n} | ({} if points is None else _coco_points(points))
            for i, n in zip(category_ids, classes, strict=True)
        ],
    }


def _coco_keypoints(keypoints: np.ndarray) -> dict[str, Any]:
    return {"keypoints": keypoints.reshape(-1).tolist(), "num_keypoints": int((keypoints[:, 2] > 0).sum())}


def _coco_points(points: PointSet) -> dict[str, Any]:
    return {
        "keypoints": list(points.names),
        "skeleton": [[a + 1, b + 1] for a, b in points.edges],
        **({"sigmas": list(points.sigmas)} if points.sigmas else {}),
    }
