"""What would KITTI's object benchmark say of these detections?  AP in the image, on the ground and in 3D, and AOS.

The rules are those of the benchmark's program (evaluate_object.cpp of the development kit, and the offline copies of
it that papers used), with its oddities:

- Objects too small, occluded or truncated for a difficulty, and those of a neighbouring class, are neither missed nor
  found; a detection that is assigned to one counts for nothing.
- A detection whose box is not high enough for the difficulty counts for nothing either, whatever its class.  One of
  another class can thus be assigned to an object, which then is neither found nor missed.
- Thresholds come from a first pass without false positives, in which an object takes the best score, not the largest
  overlap.  At most 41 are kept, one every 1/40 of recall.  Fewer than 41 found objects give fewer thresholds and
  precision 0 behind them: perfect detections of n < 41 objects have an AP (40 points) of (n - 1) / 40.
- A detection that shares with one DontCare region more than the minimum overlap of its own area is no false positive.
  On the ground DontCare's -1 metres make it a square of 1 m at x = z = -1000, so that it takes up the detections that
  have no place either (-1000, sides -1).  In 3D it has no volume and takes up none.  Objects and detections without
  3D information are otherwise counted as all others are.
- The difference of two alphas is taken as it is, also where that of the object is -10, unknown.

Different on purpose: a class without a detection has AP 0, where the program says nothing of it; a class without an
object to find has nan; a threshold at which every detection counts for nothing has precision 0 instead of 0 / 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from kpjax.data.kitti_files import DONT_CARE, KittiObjects
from kpjax.errors import ConfigError, DataError
from kpjax.metrics.rotated_boxes import ground, intersections

DIFFICULTIES = ("easy", "moderate", "hard")
MIN_HEIGHT = (40, 25, 25)  # pixels
MAX_OCCLUSION = (0, 1, 2)
MAX_TRUNCATION = (0.15, 0.3, 0.5)
# The overlap that has to be exceeded: the benchmark's, and the looser one on the ground and in 3D.
MIN_OVERLAPS = {"Car": (0.7, 0.5), "Pedestrian": (0.5, 0.25), "Cyclist": (0.5, 0.25)}
DEFAULT_MIN_OVERLAPS = (0.5, 0.25)  # of other classes
NEIGHBOURS = {"Car": ("Van",), "Pedestrian": ("Person_sitting",)}
RECALLS = 41  # samples of precision
POINTS = (11, 40)

_UNKNOWN_ALPHA = -10
_OVERLAPS = ("2d", "bev", "3d")  # metrics with an overlap of their own; "aos" takes that of "2d"
_PAIRS_AT_ONCE = 1 << 18  # bounds the memory


@dataclasses.dataclass(frozen=True)
class Curve:
    """Precision of one class, by one metric, at one minimum overlap.

    metric: "2d" boxes in the image, "aos" the same with their orientation, "bev" boxes from above, "3d".  overlap:
    "official" or "loose", which is min_overlap.  precision: (3, 41) float64, easy, moderate and hard, at the recalls 0,
    1/40, ..., 1, as the benchmark samples them: never rising; of "aos" it is the orientation similarity.  nan where
    there is no object to find, and of "aos" where a detection has no alpha.  objects: (3,) int64, how many there are
    to find.
    """

    name: str
    metric: str
    overlap: str
    min_overlap: float
    precision: np.ndarray
    objects: np.ndarray


def evaluate_kitti(
    truth: Sequence[KittiObjects],
    found: Sequence[KittiObjects],
    classes: Sequence[str],
    *,
    min_overlaps: Mapping[str, tuple[float, float]] = MIN_OVERLAPS,
    neighbours: Mapping[str, Sequence[str]] = NEIGHBOURS,
) -> list[Curve]:
    """The curves of each class: 2d and aos (official), bev and 3d (official and loose), in this order.

    truth: the label file of each image, DontCare included.  found: the detections of each image, with scores; those of
    any class.  classes: names as in `truth`; case does not matter.  min_overlaps: class -> (official, loose);
    DEFAULT_MIN_OVERLAPS of the others.  neighbours: class -> the classes that are taken for it without harm.

    Raises DataError, one line: another number of images, detections without scores, a number that is not finite.
    Raises ConfigError: a minimum overlap outside 0..1.
    """
    if len(truth) != len(found):
        raise DataError(
            f"{len(truth)} images have labels and {len(found)} have detections; give a record, maybe an empty one, of "
            "both for each image"
        )
    limits = {name: _of_class(min_overlaps, name, DEFAULT_MIN_OVERLAPS) for name in classes}
    for name, pair in limits.items():
        if len(pair) != 2 or not all(0 <= value < 1 for value in pair):
            raise ConfigError(
                f"the minimum overlaps of {name} are {pair}; give two numbers, official and loose, in 0..1"
            )
    labels, results = _joined(truth, "labels"), _joined(found, "detections", scores=True)
    pairs, absorbed = _pairs(labels, results)
    oriented = not (results.objects.alpha == _UNKNOWN_ALPHA).any()  # one unknown alpha is enough, as in the program
    curves = []
    for name in classes:
        levels = [_clean(labels, results, name, _of_class(neighbours, name, ()), level) for level in range(3)]
        objects = np.array([(level.role == _COUNTS).sum() for level in levels])
        for metric in _OVERLAPS:
            for kind, limit in zip(("official", "loose"), limits[name], strict=True):
                if metric == "2d" and kind == "loose":
                    continue
                both = [
                    _precision(labels, results, pairs, level, metric, limit, absorbed[metric] > limit)
                    for level in levels
                ]
                precision, similarity = (np.stack(one) for one in zip(*both, strict=True))
                curves.append(Curve(name, metric, kind, limit, precision, objects))
                if metric == "2d":
                    similarity = similarity if oriented else np.full_like(similarity, np.nan)
                    curves.append(Curve(name, "aos", kind, limit, similarity, objects))
    return curves


def average_precision(precision: np.ndarray, points: int) -> np.ndarray:
    """(..., 41) -> (...): the mean of every fourth sample (11 points), or of all but that of recall 0 (40 points)."""
    if points not in POINTS:
        raise ConfigError(f"{points} points of recall; KITTI has used 11 and 40")
    return np.mean(precision[..., ::4] if points == 11 else precision[..., 1:], axis=-1)


def stats(curves: Sequence[Curve]) -> dict[str, float]:
    """All AP, 0..1, by keys such as "Car/3d@0.50/moderate/R40", and the one number that stands for them, "AP".

    "AP": mean over the classes that have an object to find of AP in 3D, moderate, 40 points, at the loose overlaps.
    nan: see `Curve`.
    """
    numbers = {}
    for curve in curves:
        for level, difficulty in enumerate(DIFFICULTIES):
            for points in POINTS:
                key = f"{curve.name}/{curve.metric}@{curve.min_overlap:.2f}/{difficulty}/R{points}"
                numbers[key] = float(average_precision(curve.precision[level], points))
    main = [curve.precision[1] for curve in curves if curve.metric == "3d" and curve.overlap == "loose"]
    known = [float(average_precision(precision, 40)) for precision in main if not np.isnan(precision).any()]
    return {"AP": float(np.mean(known)) if known else float("nan")} | numbers


def table(curves: Sequence[Curve]) -> str:
    """AP in percent for people to read: a line a curve; "-" where there is none."""
    wide = max([len("class"), *(len(curve.name) for curve in curves)])
    levels = "".join(f"{difficulty:>9s}" for difficulty in DIFFICULTIES)
    lines = [f"{'AP, %':{wide + 17}s}{'11 points':>27s}  {'40 points':>27s}"]
    lines += [f"{'class':{wide}s}  metric  overlap{levels}  {levels}"]
    for curve in curves:
        columns = [100 * average_precision(curve.precision, points) for points in POINTS]
        texts = ["".join("        -" if np.isnan(ap) else f"{ap:9.2f}" for ap in column) for column in columns]
        lines.append(f"{curve.name:{wide}s}  {curve.metric:6s}  {curve.min_overlap:7.2f}{texts[0]}  {texts[1]}")
    return "\n".join(lines)


def _of_class(mapping: Mapping, name: str, default: tuple) -> tuple:
    return next((tuple(value) for key, value in mapping.items() if key.lower() == name.lower()), default)


@dataclasses.dataclass(frozen=True)
class _Joined:
    """The objects of all images in a row.  image: (n,) which image they are of, ascending.  types: (n,) lower case."""

    objects: KittiObjects
    image: np.ndarray
    types: np.ndarray
    images: int

    @property
    def boxes3d(self) -> np.ndarray:
        one = self.objects
        return np.concatenate([one.location, one.size, one.yaw[:, None]], axis=1)


def _joined(records: Sequence[KittiObjects], kind: str, *, scores: bool = False) -> _Joined:
    arrays = {}
    empty = {"boxes": (0, 4), "size": (0, 3), "location": (0, 3)}
    names = ["truncation", "occlusion", "alpha", "boxes", "size", "location", "yaw"] + ["scores"] * scores
    for name in names:
        parts = [np.zeros(empty.get(name, (0,)))]
        for i, record in enumerate(records):
            part = getattr(record, name)
            if part is None and len(record):
                raise DataError(f"the {kind} of image {i} (from 0) have no {name}; give a score for each detection")
            if len(record):
                parts.append(np.asarray(part, np.float64))
        arrays[name] = np.concatenate(parts)
    image = np.repeat(np.arange(len(records)), [len(record) for record in records])
    for name, values in arrays.items():
        wrong = np.flatnonzero(~np.isfinite(values).all(axis=tuple(range(1, values.ndim))))
        if len(wrong):
            raise DataError(
                f"the {kind} of image {image[wrong[0]]} (from 0): {name} is {values[wrong[0]]}; give finite numbers"
            )
    types = tuple(name for record in records for name in record.types)
    lower = np.array([name.lower() for name in types], dtype=np.str_)
    return _Joined(KittiObjects(types=types, **arrays), image, lower, len(records))


@dataclasses.dataclass(frozen=True)
class _Pairs:
    """Objects (not DontCare) and detections of the same image that overlap, ordered by object, then detection.

    truth, found: (P,) places in the rows of `_Joined`.  overlaps: metric -> (P,) intersection over union.
    """

    truth: np.ndarray
    found: np.ndarray
    overlaps: dict[str, np.ndarray]


def _pairs(labels: _Joined, results: _Joined) -> tuple[_Pairs, dict[str, np.ndarray]]:
    """What overlaps, and metric -> (D,) the largest part of each detection that lies in one DontCare region."""
    per_image = np.bincount(results.image, minlength=labels.images)
    first = np.cumsum(per_image) - per_image
    partners = per_image[labels.image]  # of each object
    ends = np.cumsum(partners)
    region = labels.types == DONT_CARE.lower()
    boxes, solids = (labels.objects.boxes, results.objects.boxes), (labels.boxes3d, results.boxes3d)
    areas = [(box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]) for box in boxes]
    rectangles = [np.abs(ground(one)[:, 2:4]).prod(1) for one in solids]
    volumes = [area * one[:, 3] for area, one in zip(rectangles, solids, strict=True)]
    sizes = {"2d": areas, "bev": rectangles, "3d": volumes}
    absorbed = {metric: np.zeros(len(results.types)) for metric in _OVERLAPS}
    nothing = np.zeros(0)
    kept = [(nothing.astype(np.int64), nothing.astype(np.int64), nothing, nothing, nothing)]
    total = int(ends[-1]) if len(ends) else 0
    for start in range(0, total, _PAIRS_AT_ONCE):
        number = np.arange(start, min(start + _PAIRS_AT_ONCE, total))
        truth = np.searchsorted(ends, number, side="right")
        found = first[labels.image[truth]] + number - (ends - partners)[truth]
        a, b = boxes[0][truth], boxes[1][found]
        sides = np.maximum(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0)
        shared = {"2d": sides.prod(1)}
        shared["bev"], shared["3d"] = intersections(solids[0][truth], solids[1][found])
        some = np.flatnonzero((shared["2d"] > 0) | (shared["bev"] > 0))
        truth, found, dont_care = truth[some], found[some], region[truth[some]]
        ratios = []
        for metric in _OVERLAPS:
            ours, its = sizes[metric][1][found], sizes[metric][0][truth]
            both = shared[metric][some]
            whole = np.where(dont_care, ours, ours + its - both)
            ratio = np.divide(both, whole, out=np.zeros(len(both)), where=both > 0)
            np.maximum.at(absorbed[metric], found[dont_care], ratio[dont_care])
            ratios.append(ratio[~dont_care])
        kept.append((truth[~dont_care], found[~dont_care], *ratios))
    truth, found, *overlaps = (np.concatenate(one) for one in zip(*kept, strict=True))
    return _Pairs(truth, found, dict(zip(_OVERLAPS, overlaps, strict=True))), absorbed


_COUNTS, _IGNORED, _OTHER = 0, 1, 2  # roles for a class at a difficulty


@dataclasses.dataclass(frozen=True)
class _Level:
    """Roles for one class at one difficulty.  role: (G,) of objects.  found_role: (D,) of detections."""

    role: np.ndarray
    found_role: np.ndarray


def _clean(labels: _Joined, results: _Joined, name: str, neighbours: Sequence[str], level: int) -> _Level:
    truth, own = labels.objects, labels.types == name.lower()
    hard = truth.occlusion > MAX_OCCLUSION[level]
    hard |= truth.truncation > MAX_TRUNCATION[level]
    hard |= truth.boxes[:, 3] - truth.boxes[:, 1] < MIN_HEIGHT[level]
    near = np.isin(labels.types, [one.lower() for one in neighbours])
    role = np.where(own & ~hard, _COUNTS, np.where(own | near, _IGNORED, _OTHER))
    low = np.abs(results.objects.boxes[:, 1] - results.objects.boxes[:, 3]) < MIN_HEIGHT[level]
    found_role = np.where(low, _IGNORED, np.where(results.types == name.lower(), _COUNTS, _OTHER))
    return _Level(role, found_role)


def _precision(
    labels: _Joined,
    results: _Joined,
    pairs: _Pairs,
    level: _Level,
    metric: str,
    min_overlap: float,
    absorbed: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """(41,) precision and (41,) orientation similarity.  absorbed: (D,) bool, in a DontCare region."""
    count = int((level.role == _COUNTS).sum())
    if not count:
        return np.full(RECALLS, np.nan), np.full(RECALLS, np.nan)
    ours = np.flatnonzero(level.found_role != _OTHER)  # from here on detections are numbered by their place in it
    place = np.full(len(level.found_role), -1)
    place[ours] = np.arange(len(ours))
    fits = (pairs.overlaps[metric] > min_overlap) & (level.role[pairs.truth] != _OTHER) & (place[pairs.found] >= 0)
    truth, found, overlap = pairs.truth[fits], place[pairs.found[fits]], pairs.overlaps[metric][fits]
    scores = np.asarray(results.objects.scores)[ours]
    # A last place stands for no detection.
    ignored = np.append(level.found_role[ours] == _IGNORED, False)

    def found_by(order: np.ndarray, free: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Objects, what each takes of its candidates, in `order`, and which of that is a true positive."""
        objects, chosen = _assign(truth[order], found[order], labels.image, free)
        right = (level.role[objects] == _COUNTS)[:, None] & (chosen < len(ours)) & ~ignored[chosen]
        return objects, chosen, right

    best_score = np.lexsort((found, -scores[found], truth))
    _, chosen, right = found_by(best_score, np.append(np.ones(len(ours), bool), False)[:, None])
    limits = _thresholds(np.sort(scores[chosen[right]])[::-1], count)

    # A detection that counts goes before one that is ignored.  The program takes the first ignored one and not the one
    # of the largest overlap, but that changes neither true nor false positives.
    nearest = np.lexsort((found, -overlap, ignored[found], truth))
    free = np.append(scores, -np.inf)[:, None] >= limits
    objects, chosen, right = found_by(nearest, free)
    rest = np.append(~ignored[:-1] & ~absorbed[ours], False)
    positives = right.sum(0) + (free & rest[:, None]).sum(0)
    precision = _never_rising(right.sum(0), positives)
    if metric != "2d":
        return precision, np.full(RECALLS, np.nan)
    alpha = np.append(results.objects.alpha[ours], 0)
    similarity = (1 + np.cos(labels.objects.alpha[objects][:, None] - alpha[chosen])) / 2
    return precision, _never_rising(np.where(right, similarity, 0).sum(0), positives)


def _assign(truth: np.ndarray, found: np.ndarray, image: np.ndarray, free: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Let each object in turn take its first candidate that is still free, at T thresholds at once.

    truth, found: (P,) candidates, ascending by object and in its order of preference.  image: the image of each object.
    free: (D + 1, T) bool, changed in place; the last row is all false.  Returns (n,) the objects that have candidates,
    and (n, T) what they take; D: nothing.
    """
    none, steps = free.shape[0] - 1, np.arange(free.shape[1])
    objects, first, counts = np.unique(truth, return_index=True, return_counts=True)
    row = np.repeat(np.arange(len(objects)), counts)
    candidates = np.full((len(objects), counts.max(initial=0)), none)
    candidates[row, np.arange(len(truth)) - first[row]] = found
    # Objects of different images share no detection: the first ones of all images take theirs, then the second ones.
    _, start, counts = np.unique(image[objects], return_index=True, return_counts=True)
    chosen = np.full((len(objects), len(steps)), none)
    for turn in range(counts.max(initial=0)):
        rows = start[counts > turn] + turn
        open_ones = free[candidates[rows]]  # (n, C, T)
        choice = np.take_along_axis(candidates[rows], open_ones.argmax(1), axis=1)
        chosen[rows] = np.where(open_ones.any(1), choice, none)
        free[chosen[rows], steps] = False
    return objects, chosen


def _thresholds(scores: np.ndarray, count: int) -> np.ndarray:
    """Of the scores of true positives, descending, those whose recall is next to 0, 1/40, 2/40, ...

    count: of the objects to find.
    """
    limits, recall, last = [], 0.0, len(scores) - 1
    for i, score in enumerate(scores):
        left, right = (i + 1) / count, (i + 2) / count
        if i < last and right - recall < recall - left:
            continue
        limits.append(score)
        recall += 1 / (RECALLS - 1)
    return np.array(limits, np.float64)


def _never_rising(hits: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """hits / positives (at most 41) as (41,), 0 behind the last, each raised to the largest at its recall or above."""
    values = np.zeros(RECALLS)
    values[: len(hits)] = np.divide(hits, positives, out=np.zeros(len(hits)), where=positives > 0)
    return np.maximum.accumulate(values[::-1])[::-1]
