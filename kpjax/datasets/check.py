"""Checking a data set: what training would do with every annotation and image, with oddities counted.

It opens splits, reads files and encodes objects with the functions that training uses, so that its report matches
training.  Images are decoded only where the header or the end of the file is suspicious.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from kpjax.config import Config
from kpjax.data import files
from kpjax.data.batch import decode_checked
from kpjax.data.opening import open_source
from kpjax.data.source import (
    CROWD,
    NO_AREA,
    OUTSIDE,
    REGION,
    Source,
    all_objects,
    left_out,
    object_counts,
    without_empty_images,
)
from kpjax.data.turned import header_of, judged
from kpjax.datasets.check_3d import AWAY, BEHIND, NO_CLASS, NO_SIZE, SolidsReport, look_at_solids
from kpjax.datasets.check_mistakes import (
    BELOW_CELL,
    CORNERS,
    FRACTIONS,
    ONE_NAME,
    OTHERWISE,
    POINT_FRACTIONS,
    TINY,
    TWICE,
    TWO_IDS,
    line_of,
    probable_mistakes,
    too_small,
)
from kpjax.datasets.check_points import NO_POINTS, OUTSIDE_BOX, OUTSIDE_IMAGE, PointsReport, look_at_points
from kpjax.detectors import build
from kpjax.detectors.base import Detector
from kpjax.errors import (
    DUPLICATE,
    INCOMPLETE,
    MALFORMED,
    MISSING,
    PASSING,
    TRUNCATED,
    UNKNOWN_CATEGORY,
    UNKNOWN_IMAGE,
    UNREADABLE,
    WRONG_SIZE,
    ConfigError,
    DataError,
)
from kpjax.images.decode import SUFFIXES, fitted_size, turns
from kpjax.images.geometry import whole_crop
from kpjax.objects import Objects, Placed, PointSet, map_coordinates

AS_SHOWN = "image with an EXIF rotation, annotated as it is shown"
AS_STORED = "image with an EXIF rotation, annotated as it is stored"
UNCLEAR = "image with an EXIF rotation that its size does not tell"
FITS_TURNED = "image with an EXIF rotation whose boxes fit it only the other way"
GREY, CMYK, PALETTE, ALPHA, DEEP = "grey image", "CMYK image", "palette image", "image with alpha", "16-bit image"
DARK = "16-bit image whose upper bits are empty"
FRAMES = "image of several frames"
NOT_JPEG = "image that is no JPEG"
LARGE = "image larger than the canvas"
PARTLY = "box partly outside the image"
OVER = "image with more boxes than config.data.max_boxes"
NO_BOXES = "image without boxes to train on"
UNLISTED = "image file that the JSON does not list"

_MODES = {"L": GREY, "1": GREY, "CMYK": CMYK, "YCCK": CMYK, "P": PALETTE, "RGBA": ALPHA, "LA": ALPHA, "PA": ALPHA}
_BAD_IMAGES = (MISSING, UNREADABLE, TRUNCATED, WRONG_SIZE, PASSING)
_LEFT_OUT = {CROWD: "crowd", REGION: REGION, NO_AREA: "box without area", OUTSIDE: "box wholly outside the image"}
_REFUSED = (MALFORMED, DUPLICATE, UNKNOWN_IMAGE, UNKNOWN_CATEGORY, INCOMPLETE)
_TURNS = {"as_shown": AS_SHOWN, "as_stored": AS_STORED, "unclear": UNCLEAR}
_DARK = 64  # of 255: less is brightest where values have 14 of 16 bits, as those of sensors with 10, 12 or 14
_SLACK = 2  # pixels that a box may reach beyond its image through rounding
_CHUNK = 4096  # objects encoded at a time

# What is done with each kind: (in training, in evaluation).
ACTIONS = {
    **dict.fromkeys(_REFUSED, ("stops before the first step", "stops before the first step")),
    "crowd": ("left out", "detections on it count neither way"),
    REGION: ("no object; to a model of 3D boxes its place is no background", "detections on it count neither way"),
    NO_CLASS: ("left out", "left out"),
    "box without area": ("left out", "as annotated: counts as missed"),
    "box wholly outside the image": ("left out", "as annotated"),
    PARTLY: ("used, cut where the model's recipe cuts", "as annotated"),
    OVER: ("its last boxes are left out", "as annotated"),
    NO_BOXES: ("used as background", "used"),
    OUTSIDE_BOX: ("used", "used"),
    OUTSIDE_IMAGE: ("used where a crop shows the border there, else left out", "used"),
    NO_POINTS: (
        "its centre alone is learnt, unless config.model.options has box_without_points",
        "in the boxes' AP alone; for that of keypoints, detections on it count neither way",
    ),
    BEHIND: ("used as annotated", "as annotated"),
    NO_SIZE: ("used as annotated", "as annotated"),
    AWAY: ("used as annotated", "as annotated"),
    **dict.fromkeys((AS_SHOWN, AS_STORED, UNCLEAR), ("", "")),  # see `_TURNED`
    FITS_TURNED: ("used as annotated: correct the width and height", "as annotated: correct the width and height"),
    GREY: ("made RGB", "made RGB"),
    CMYK: ("made RGB", "made RGB"),
    PALETTE: ("made RGB", "made RGB"),
    ALPHA: ("made RGB, transparency dropped", "made RGB, transparency dropped"),
    DEEP: ("made RGB of its upper 8 bits", "made RGB of its upper 8 bits"),
    FRAMES: ("its first frame is used", "its first frame is used"),
    NOT_JPEG: ("decoded by Pillow, which is slower", "decoded by Pillow"),
    LARGE: ("shrunk to config.data.canvas, with its boxes", "its own size, unless config.eval.max_side is set"),
    FRACTIONS: ("used as pixels", "used as pixels"),
    CORNERS: ("used as x y width height", "used as x y width height"),
    POINT_FRACTIONS: ("used as pixels", "used as pixels"),
    TINY: ("used, though there is nothing of it to see", "as annotated"),
    BELOW_CELL: ("used", "as annotated"),
    TWICE: ("used twice: both want one peak", "as annotated: one of them counts as missed"),
    TWO_IDS: ("used as several images", "an image each, with the objects of its id alone"),
    DARK: ("made RGB of its upper 8 bits, nearly black", "made RGB of its upper 8 bits, nearly black"),
    OTHERWISE: ("used: no other file can be meant", "used: no other file can be meant"),
    ONE_NAME: ("a class of its own", "a class of its own, named with its id"),
    UNLISTED: ("never read", "never read"),
    PASSING: ("stops the run", "stops the run"),
}
_UNCLEAR = "used as stored; if their boxes fit the turned images, config.data.exif='apply' turns them"
_OTHER_SIZE = "and so of another size than annotated"
# What is done with images that EXIF turns, by `config.data.exif`.
_TURNED = {
    "size": {AS_SHOWN: "turned", AS_STORED: "used as stored", UNCLEAR: _UNCLEAR},
    "apply": {AS_SHOWN: "turned", AS_STORED: f"turned, {_OTHER_SIZE}", UNCLEAR: "turned"},
    "ignore": {AS_SHOWN: f"used as stored, {_OTHER_SIZE}", AS_STORED: "used as stored", UNCLEAR: "used as stored"},
}
_SKIPPED = ("an empty image", "no detections in it")


@dataclasses.dataclass
class Oddity:
    """All cases of a kind.  action: what is done with them.  cases: a line each.  stops: whether that ends the run."""

    kind: str
    action: str
    cases: list[str]
    stops: bool


@dataclasses.dataclass
class Collisions:
    """Objects of one image that fall into one cell of a keypoint's map, the whole image placed on the input.

    objects: that have a cell.  same_class: that share it with an earlier one of their class: one peak for both.
    other_class: further classes in cells of several: one size or offset for both.  For "joint", the named points of
    objects, an object is a point, and its class its name.
    """

    objects: int
    same_class: int
    other_class: int


@dataclasses.dataclass
class SplitReport:
    """What was found in a split.

    classes: `Source.distinct_classes`.  objects: (N,) trainable objects an image.  sizes: (n,) square roots of boxes'
    areas in pixels of the network's input, the whole image placed on it.  max_boxes: the setting that leaves no box
    out.  collisions: by keypoint.  stride: pixels a cell.  points: of objects' keypoints, where the model learns any.
    solids: of 3D boxes, where the data have them.  stop: the line with which a run would end, or "".
    """

    split: str
    name: str
    images: int
    classes: tuple[str, ...]
    objects: np.ndarray
    class_counts: np.ndarray
    sizes: np.ndarray
    max_boxes: int
    oddities: list[Oddity]
    collisions: dict[str, Collisions] = dataclasses.field(default_factory=dict)
    stride: int = 0
    points: PointsReport | None = None
    solids: SolidsReport | None = None
    stop: str = ""


def check_split(
    config: Config,
    split: str,
    detector_of: Callable[[int, PointSet | None], Detector],
    *,
    keypoints: bool = False,
    solid: bool | None = None,
    outlines: bool | None = False,
    decode: bool = False,
    progress: bool = True,
) -> tuple[SplitReport, Source]:
    """Look at the split "train" or "val" of a configuration.

    detector_of: number of classes, and the data's points or None -> the detector whose keypoints are counted.
    keypoints: look at the objects' keypoints too, because the detector learns them.  solid: whether it learns 3D boxes;
    None: look at those that there are.  outlines: whether it learns extreme points; None:
    look at those that there are.  decode: decode every image, not
    the suspicious ones alone.  progress: a bar on stderr, where that is a terminal.
    Raises DataError or ConfigError where the split cannot be opened at all.
    """
    mistakes: list[DataError] = []
    everything = open_source(config.data, split, mistakes.append, keypoints=keypoints, solid=solid, outlines=outlines)
    empty = [everything.files[i] for i in np.flatnonzero(object_counts(everything) == 0)]
    drops = split == "train" and config.data.empty_images == "drop" and len(empty) < len(everything)
    source = without_empty_images(everything) if drops else everything
    which = 0 if split == "train" else 1
    skip = config.data.bad_images == "skip"
    cases: dict[str, list[str]] = {}
    for mistake in mistakes:
        if mistake.kind not in _BAD_IMAGES:  # found again, one by one, when the files are read
            cases.setdefault(mistake.kind, []).append(str(mistake))
    first_bad: DataError | None = None
    for kind, text, bad in _look_at_images(source, config, decode, progress):
        cases.setdefault(kind, []).append(text)
        first_bad = first_bad or bad
    stop, stride, collisions = "", 0, {}
    try:
        detector = detector_of(len(source.classes), source.points)
        stride, collisions = detector.stride, count_collisions(source, config, detector)
    except ConfigError as error:
        stop = str(error)
    on_input = _on_input(source, config)
    for kind, found in (
        *_look_at_boxes(source, config.data.max_boxes, config.data.crowds),
        *too_small(source, config.data.crowds, on_input, stride),
        *probable_mistakes(source),
    ):
        cases.setdefault(kind, []).extend(found)
    points, odd_points = look_at_points(source, config.data.crowds)
    solids, odd_solids = look_at_solids(source)
    cases |= odd_points | odd_solids
    if empty:
        cases[NO_BOXES] = empty
    unlisted = _unlisted(everything, getattr(config.data, split).images if config.data.source == "coco" else "")
    if unlisted:
        cases[UNLISTED] = unlisted

    oddities: list[Oddity] = []
    for kind in (*_REFUSED, *_BAD_IMAGES, *ACTIONS):
        if kind in cases and kind not in {o.kind for o in oddities}:
            stops = kind in (*_REFUSED, PASSING) or (kind in _BAD_IMAGES and not skip)
            action = ACTIONS[kind][which] if kind in ACTIONS else _SKIPPED[which] if skip else "stops the run"
            action = "left out, as config.data.empty_images says" if kind == NO_BOXES and drops else action
            action = _TURNED[config.data.exif].get(kind, action)
            oddities.append(Oddity(kind, action, cases[kind], stops))
    report = SplitReport(
        split=split,
        name=source.name,
        images=len(source),
        classes=source.distinct_classes,
        objects=object_counts(source),
        class_counts=np.bincount(all_objects(source)[0].labels, minlength=len(source.classes)),
        sizes=np.sqrt(np.prod(np.maximum(on_input[:, 2:], 0), axis=1)),
        max_boxes=max(1, int(object_counts(source).max(initial=0))),
        oddities=oddities,
        collisions=collisions,
        stride=stride,
        points=points,
        solids=solids,
    )
    if mistakes:
        report.stop = str(mistakes[0])
    elif first_bad is not None and not skip:
        report.stop = f"{first_bad}; or set config.data.bad_images='skip'"
    report.stop = report.stop or stop
    return report, source


def _look_at_images(
    source: Source, config: Config, decode: bool, progress: bool
) -> Iterator[tuple[str, str, DataError | None]]:
    """(kind, a line, the error where the image cannot be used) for each oddity, in the order of the records."""
    threads = config.data.threads or os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        found = pool.map(lambda i: _look_at(source, i, config.data.canvas, decode), range(len(source)))
        bar = tqdm(found, total=len(source), unit="image", desc=source.name[-40:], disable=None if progress else True)
        for of_image in bar:
            yield from of_image


def _look_at(source: Source, i: int, canvas: int, decode: bool) -> list[tuple[str, str, DataError | None]]:
    name = source.files[i]
    suspicious = decode
    found: list[tuple[str, str, DataError | None]] = []
    try:
        try:
            header = header_of(source, i)
        except OSError:
            source.read(i)  # raises the error that training would
            raise
    except DataError:
        suspicious = True
    except OSError as error:
        bad = DataError(f"{name}: cannot be read ({error.strerror or error})", UNREADABLE)
        return [(bad.kind, str(bad), bad)]
    else:
        stated = int(source.heights[i]), int(source.widths[i])
        stored = header.height, header.width
        is_turned = header.orientation >= 5 and turns(header.orientation, stored, stated, source.exif)
        suspicious |= (stored[::-1] if is_turned else stored) != stated or not header.ended or header.mode == "F"
        if of_exif := judged(header, stated):
            line = f"{name}: EXIF orientation {header.orientation}, stored as {stored[1]} x {stored[0]}"
            found.append((_TURNS[of_exif], line, None))
            if of_exif != "unclear" and _fits_only(source, i, stated[::-1]):
                found.append((FITS_TURNED, f"{line}, annotated as {stated[1]} x {stated[0]}", None))
        kind = DEEP if header.deep else _MODES.get(header.mode)
        if kind:
            found.append((kind, f"{name}: {header.mode}", None))
        suspicious |= header.deep
        if header.animated:
            found.append((FRAMES, f"{name}: {header.kind}", None))
        if header.kind not in ("JPEG", "MPO"):
            found.append((NOT_JPEG, f"{name}: {header.kind}", None))
        if max(stated) > canvas:
            found.append((LARGE, f"{name}: {stated[1]} x {stated[0]}", None))
    if suspicious:
        try:
            # Pillow decides, as in training: it gets all that TensorFlow refuses, and refuses more.  TensorFlow's
            # libjpeg also writes to the terminal.
            pixels = decode_checked(source, i, canvas)
            top = int(pixels.max(initial=0))
            if any(f[0] == DEEP for f in found) and top < _DARK:
                bits = 8 + top.bit_length() if top else "8 or fewer"
                found.append(
                    (DARK, f"{name}: its brightest value becomes {top} of 255, as if it had {bits} bits", None)
                )
        except DataError as bad:
            # Keep an EXIF rotation, which may be the reason; nothing else matters for an unusable image.
            return [(bad.kind, str(bad), bad), *(f for f in found if f[0] in (*_TURNS.values(), FITS_TURNED))]
    return found


def _fits_only(source: Source, i: int, size: tuple[int, int]) -> bool:
    """Whether boxes of image i lie partly outside it, and all inside one of this other (height, width)."""
    a = source.annotations
    box = a.bbox[a.image == i]
    if not len(box):
        return False
    right, bottom = (box[:, 0] + box[:, 2]).max() - _SLACK, (box[:, 1] + box[:, 3]).max() - _SLACK
    outside = right > source.widths[i] or bottom > source.heights[i]
    return bool(outside and right <= size[1] and bottom <= size[0])


def _look_at_boxes(source: Source, max_boxes: int, crowds: str) -> Iterator[tuple[str, list[str]]]:
    a, line = source.annotations, line_of(source)
    reasons = left_out(a, source.heights, source.widths, crowds)
    for reason, kind in _LEFT_OUT.items():
        yield from _some(kind, [line(n) for n in np.flatnonzero(reasons == reason)])
    right, bottom = source.widths[a.image], source.heights[a.image]
    x, y, w, h = a.bbox.T
    # Half a pixel: the rounding of annotation tools is no oddity.
    partly = (reasons == "") & ((x < -0.5) | (y < -0.5) | (x + w > right + 0.5) | (y + h > bottom + 0.5))
    yield from _some(PARTLY, [line(n) for n in np.flatnonzero(partly)])
    counts = object_counts(source).tolist()
    over = [f"{source.files[i]}: {c} boxes, {c - max_boxes} beyond it" for i, c in enumerate(counts) if c > max_boxes]
    yield from _some(OVER, over)


def _some(kind: str, found: list[str]) -> Iterator[tuple[str, list[str]]]:
    if found:
        yield kind, found


def _unlisted(source: Source, folder: str) -> list[str]:
    """Image files in the folder, and locally in all folders below it, that no record names."""
    if not folder:
        return []
    root, listed = files.absolute(os.path.expanduser(folder)), set(source.files)
    if files.is_url(root):
        found = [files.join(root, name) for name in files.names_in(root)]
    else:
        found = [os.path.join(place, name) for place, _, names in os.walk(root) for name in names]
    return sorted(path for path in found if path.lower().endswith(SUFFIXES) and path not in listed)


def _on_input(source: Source, config: Config) -> np.ndarray:
    """The trainable boxes (n, 4) float32 as x1 y1 w h of the network's input, the whole image placed on it."""
    boxes = _placed(source, config)[0].boxes
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def _placed(source: Source, config: Config) -> tuple[Objects, np.ndarray]:
    """Trainable objects (n, ...) in input pixels, as config.augment.kind="none" places them, and their images (n,)."""
    objects, image = all_objects(source)
    high, wide = fitted_size(source.heights, source.widths, config.data.canvas)
    scale = np.stack([wide / source.widths, high / source.heights], axis=1).astype(np.float32)[image]
    objects = map_coordinates(objects, lambda xy: xy * scale[:, None])
    size, fills = (config.augment.height, config.augment.width), build(config.model.name, 1).preprocess.fills

    def place(one: Objects, extent: Any) -> Any:
        return map_coordinates(one, whole_crop(extent, size, fills).geometry.move_points)

    return _in_chunks(jax.jit(jax.vmap(place)), objects, np.stack([high, wide], axis=1)[image]), image


def count_collisions(source: Source, config: Config, detector: Detector) -> dict[str, Collisions]:
    """By keypoint of the detector ("" where there is one), the objects that share a cell.

    Cells are those of `detector.encode`, an object at a time.
    """
    objects, image = _placed(source, config)
    placed = Placed((config.augment.height, config.augment.width))

    def cells(one: Objects) -> Any:
        targets = detector.encode(jax.tree.map(lambda x: x[None], one), placed)
        # The heatmaps are never computed: the compiler removes what is not returned.
        names = [key[: -len("index")] for key in targets if key.endswith("index")]

        def mask(name: str) -> Any:
            own = "keypoint_mask" if name == "joint_" else f"{name}mask"
            return targets[own if own in targets else "mask"]  # extreme points share one: an object has all or none

        return {name: jnp.where(mask(name), targets[f"{name}index"], -1)[0] for name in names}

    found = _in_chunks(jax.jit(jax.vmap(cells)), objects)
    return {name.rstrip("_"): _collisions(image, cell, objects.labels) for name, cell in found.items()}


def _collisions(image: np.ndarray, cell: np.ndarray, labels: np.ndarray) -> Collisions:
    if cell.ndim == 2:  # (n, J): a cell for each point of an object
        objects, points = cell.shape
        image, cell, labels = np.repeat(image, points), cell.ravel(), np.tile(np.arange(points), objects)
    has = cell >= 0
    places = np.stack([image[has], cell[has], labels[has]], axis=1)
    with_class = len(np.unique(places, axis=0))
    return Collisions(
        objects=len(places),
        same_class=len(places) - with_class,
        other_class=with_class - len(np.unique(places[:, :2], axis=0)),
    )


def _in_chunks(function: Callable[..., Any], *trees: Any) -> Any:
    """A vmapped function of n objects, always of one shape, so that it is compiled once."""
    results = []
    total = len(jax.tree.leaves(trees)[0])
    for begin in range(0, max(total, 1), _CHUNK):
        count = min(_CHUNK, total - begin)

        def chunk(x: np.ndarray, begin: int = begin, count: int = count) -> np.ndarray:
            part = x[begin : begin + _CHUNK]
            return np.concatenate([part, np.ones((_CHUNK - count, *x.shape[1:]), x.dtype)])

        found = function(*jax.tree.map(chunk, trees))
        results.append(jax.tree.map(lambda x, n=count: np.asarray(x)[:n], found))
    return jax.tree.map(lambda *x: np.concatenate(x), *results)
