"""KITTI's benchmark: scenes whose AP is known, and the rules once more, slowly, one object after another."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import shapely
import shapely.affinity

from kpjax.data.kitti_files import KittiObjects, objects_of_rows, read_objects
from kpjax.errors import ConfigError, DataError
from kpjax.metrics import kitti
from kpjax.metrics.kitti import Curve, average_precision, evaluate_kitti, stats, table
from tests.golden.cases import DATA

FRAMES = 41  # of one object each, so that perfect detections have precision 1 at all 41 samples
METRICS = ("2d", "aos", "bev", "3d")
ONLY = {"2d": 1.0, "aos": 1.0, "bev": 1.0, "3d": 1.0}


def row(
    name: str = "Car", left: float = 100, top: float = 100, *, wide: float = 80, high: float = 50, **changes
) -> tuple:
    """An object: its type and 14 numbers, or 15 with `score`; without `changes` it counts at all difficulties."""
    values = {
        "truncation": 0.0,
        "occlusion": 0.0,
        "alpha": 0.5,
        **dict(zip(("x1", "y1", "x2", "y2"), (left, top, left + wide, top + high), strict=True)),
        **dict(zip(("height", "width", "length"), (1.5, 1.6, 4.0), strict=True)),
        **dict(zip(("x", "y", "z", "yaw"), (left / 10, 1.6, 20.0, 0.3), strict=True)),
    }
    assert set(changes) <= {*values, "score"}
    return name, [*({**values, **changes}).values()]


def dont_care(left: float, top: float, wide: float, high: float) -> tuple:
    """As in KITTI's labels."""
    nowhere = {"height": -1, "width": -1, "length": -1, "x": -1000, "y": -1000, "z": -1000, "yaw": -10}
    return row("DontCare", left, top, wide=wide, high=high, truncation=-1, occlusion=-1, alpha=-10, **nowhere)


def record(*rows: tuple) -> KittiObjects:
    return objects_of_rows([name for name, _ in rows], np.array([numbers for _, numbers in rows]))


def as_found(labels: KittiObjects, score: float | np.ndarray, keep: Sequence[str] = ()) -> KittiObjects:
    """Perfect detections of all objects but DontCare, or of the types `keep`."""
    those = [i for i, name in enumerate(labels.types) if (name in keep if keep else name != "DontCare")]
    arrays = {
        field.name: getattr(labels, field.name)[those]
        for field in dataclasses.fields(labels)
        if field.name not in ("types", "scores")
    }
    scores = np.broadcast_to(score, len(those)).astype(np.float64)
    return KittiObjects(types=tuple(labels.types[i] for i in those), **arrays, scores=scores)


def many(labels: Sequence[tuple], found: Sequence[tuple], frames: int = FRAMES) -> tuple[list, list]:
    """The same scene in each frame, one score below another: 0.99, 0.98, ... minus what a row says."""

    def scored(rows: Sequence[tuple], frame: int) -> list[tuple]:
        return [(name, [*numbers[:14], 0.99 - frame / 100 - (numbers[14:] or [0])[0]]) for name, numbers in rows]

    return [record(*labels)] * frames, [record(*scored(found, i)) for i in range(frames)]


def points(
    truth: Sequence[KittiObjects], found: Sequence[KittiObjects], name: str = "Car", level: int = 1, **options
) -> dict[str, float]:
    """AP of 40 points by metric, at the official overlaps."""
    curves = evaluate_kitti(truth, found, [name], **options)
    return {c.metric: float(average_precision(c.precision[level], 40)) for c in curves if c.overlap == "official"}


def test_perfect_detections() -> None:
    truth, found = many([row(), row("Pedestrian", 400)], [row(), row("Pedestrian", 400)])
    curves = evaluate_kitti(truth, found, ("Car", "Pedestrian"))
    assert [(c.name, c.metric, c.overlap, c.min_overlap) for c in curves] == [
        ("Car", "2d", "official", 0.7),
        ("Car", "aos", "official", 0.7),
        ("Car", "bev", "official", 0.7),
        ("Car", "bev", "loose", 0.5),
        ("Car", "3d", "official", 0.7),
        ("Car", "3d", "loose", 0.5),
        ("Pedestrian", "2d", "official", 0.5),
        ("Pedestrian", "aos", "official", 0.5),
        ("Pedestrian", "bev", "official", 0.5),
        ("Pedestrian", "bev", "loose", 0.25),
        ("Pedestrian", "3d", "official", 0.5),
        ("Pedestrian", "3d", "loose", 0.25),
    ]
    for curve in curves:
        np.testing.assert_array_equal(curve.precision, np.ones((3, 41)))
        np.testing.assert_array_equal(curve.objects, [FRAMES] * 3)
    numbers = stats(curves)
    assert len(numbers) == 1 + 12 * 3 * 2 and set(numbers.values()) == {1.0} and next(iter(numbers)) == "AP"


@pytest.mark.parametrize("frames, thresholds", [(1, 1), (5, 5), (40, 40), (41, 41), (90, 41), (400, 41)])
def test_few_objects_have_less_than_41_thresholds_and_no_perfect_ap(frames: int, thresholds: int) -> None:
    truth, found = many([row()], [row()], frames)
    curve = evaluate_kitti(truth, found, ["Car"])[0]
    np.testing.assert_array_equal(curve.precision, [[1.0] * thresholds + [0.0] * (41 - thresholds)] * 3)
    assert average_precision(curve.precision[0], 40) == pytest.approx((thresholds - 1) / 40)
    assert average_precision(curve.precision[0], 11) == pytest.approx(math.ceil(thresholds / 4) / 11)
    with pytest.raises(ConfigError, match="12 points"):
        average_precision(curve.precision, 12)


def test_of_more_objects_than_samples_every_threshold_is_at_the_nearest_recall() -> None:
    """400 objects, false positives below the 200 best: precision 1 up to recall 1/2, then what follows from counts."""
    truth, found = many([row()], [row()], 400)
    wrong = record(*[row("Car", 700, score=0.99 - 1.995)] * 10)
    curve = evaluate_kitti([*truth, record(row("Tram"))], [*found, wrong], ["Car"])[0]
    # The threshold of recall k / 40 is the score of the 10k-th object (of the first, for recall 0).
    expected = [1.0 if k <= 20 else 400 / 410 for k in range(41)]
    np.testing.assert_allclose(curve.precision[1], expected)


@pytest.mark.parametrize("place, expected", [(-1, [41 / 42] * 41), (20, [1.0] * 20 + [41 / 42] * 21), (41, [1.0] * 41)])
def test_one_false_positive(place: int, expected: list[float]) -> None:
    """Its score is below those of `place` objects."""
    truth, found = many([row()], [row()])
    wrong = record(row("Car", 700, score=0.99 - (place - 0.5) / 100))
    for curve in evaluate_kitti([*truth, record(row("Tram", 700))], [*found, wrong], ["Car"]):
        np.testing.assert_allclose(curve.precision, [expected] * 3, err_msg=curve.metric)


def test_a_missed_object_costs_recall() -> None:
    truth, found = many([row()], [row()])
    curve = evaluate_kitti([*truth, *truth], [*found, *[record()] * FRAMES], ["Car"])[4]
    # 41 of 82 found: thresholds up to recall 1/2, which is sample 20.
    np.testing.assert_array_equal(curve.precision[1], [1.0] * 21 + [0.0] * 20)


@pytest.mark.parametrize("name, neighbour", [("Car", "Van"), ("car", "VAN"), ("Pedestrian", "Person_sitting")])
def test_a_neighbouring_class_is_neither_missed_nor_found(name: str, neighbour: str) -> None:
    truth, found = many([row(name), row(neighbour, 400)], [row(name), row(name, 400)])
    assert points(truth, found, name.upper()) == ONLY
    assert points(truth, [as_found(t, f.scores[:1], [name]) for t, f in zip(truth, found, strict=True)], name) == ONLY
    without = points(truth, found, name, neighbours={})
    assert without == {metric: pytest.approx(0.5) for metric in METRICS}
    other = many([row(name), row("Tram", 400)], [row(name), row(name, 400)])
    assert points(*other, name) == {metric: pytest.approx(0.5) for metric in METRICS}
    assert points(*other, name, neighbours={name.lower(): ["tram"]}) == ONLY
    # A detection of the neighbouring class is nobody's.
    assert points(*many([row(name)], [row(name), row(neighbour, 400)]), name) == ONLY


@pytest.mark.parametrize("inside, absorbed", [(0.72, True), (0.68, False)])
def test_dont_care_takes_up_false_positives_in_the_image_alone(inside: float, absorbed: bool) -> None:
    wrong = row("Car", 700, wide=100)
    truth, found = many([row(), dont_care(700 - 300, 0, 300 + 100 * inside, 375)], [row(), wrong])
    half = pytest.approx(0.5)
    image = 1.0 if absorbed else half
    assert points(truth, found) == {"2d": image, "aos": image, "bev": half, "3d": half}
    # Two regions do not add up.
    regions = [dont_care(600, 0, 150, 375), dont_care(750, 0, 150, 375)]
    assert points(*many([row(), *regions], [row(), wrong]))["2d"] == half


def test_detections_without_3d_are_taken_up_by_dont_care_from_above_but_not_in_3d() -> None:
    """As by the benchmark's program, for which DontCare is a square of 1 m at -1000."""
    nowhere = {"height": -1, "width": -1, "length": -1, "x": -1000, "y": -1000, "z": -1000, "yaw": -10}
    region, wrong = dont_care(700, 0, 200, 375), row("Car", 700, **nowhere)
    found = points(*many([row(), region], [row(), wrong]))
    assert found == {"2d": 1.0, "aos": 1.0, "bev": 1.0, "3d": pytest.approx(0.5)}
    assert points(*many([row()], [row(), wrong]))["bev"] == pytest.approx(0.5)
    # An object without 3D counts: from above even its place matches; in 3D nothing can.
    assert points(*many([row(**nowhere)], [row(**nowhere)])) == {"2d": 1.0, "aos": 1.0, "bev": 1.0, "3d": 0.0}


def test_the_minimum_overlap_has_to_be_exceeded() -> None:
    for wide, expected in ((50, 0.0), (51, 1.0)):
        found = points(*many([row("Tram", wide=100)], [row("Tram", wide=wide)]), "Tram")
        assert found == {**ONLY, "2d": expected, "aos": expected}
    for wide, expected in ((50, 0.5), (51, 1.0)):
        scene = [row("Tram"), dont_care(700, 100, wide, 50)], [row("Tram"), row("Tram", 700, wide=100)]
        assert points(*many(*scene), "Tram")["2d"] == pytest.approx(expected)


def test_a_threshold_without_positives_has_precision_0() -> None:
    """In the first pass the van takes the best score and leaves the car its detection; at the threshold it takes that.

    What remains lies in a DontCare region, so that the program divides 0 by 0.
    """
    labels = [row("Van", 100), row("Car", 114), dont_care(0, 0, 175, 375)]
    curve = evaluate_kitti(*many(labels, [row(left=104, score=0.5), row(left=90)]), ["Car"])[0]
    np.testing.assert_array_equal(curve.precision, np.zeros((3, 41)))
    np.testing.assert_array_equal(curve.objects, [FRAMES] * 3)


def test_the_sign_of_length_and_width_does_not_matter() -> None:
    assert points(*many([row()], [row(length=-4.0)])) == points(*many([row(width=-1.6)], [row()])) == ONLY


def test_ties_share_their_thresholds() -> None:
    truth, found = many([row()], [row(), row("Car", 700)])
    tied = [dataclasses.replace(one, scores=np.full(2, 0.5)) for one in found]
    assert points(truth, tied) == {metric: pytest.approx(0.5) for metric in METRICS}


def test_a_class_without_objects_has_nan_and_one_without_detections_zero() -> None:
    truth, found = many([row(), row("Tram", 400)], [row()])
    curves = evaluate_kitti(truth, found, ("Car", "Cyclist", "Tram"))
    numbers = stats(curves)
    for key, value in numbers.items():
        assert key == "AP" or (np.isnan(value) if "Cyclist" in key else value == float("Car" in key)), key
    assert numbers["AP"] == 0.5
    assert np.isnan(stats(evaluate_kitti(truth, found, ["Cyclist"]))["AP"])
    assert np.isnan(stats(evaluate_kitti([], [], ["Car"]))["AP"])
    assert points(truth, [record()] * FRAMES) == {metric: 0.0 for metric in METRICS}


@pytest.mark.parametrize(
    "change, counts",
    [
        ({"occlusion": 0}, (1, 1, 1)),
        ({"occlusion": 1}, (0, 1, 1)),
        ({"occlusion": 2}, (0, 0, 1)),
        ({"occlusion": 3}, (0, 0, 0)),
        ({"truncation": 0.15}, (1, 1, 1)),
        ({"truncation": 0.16}, (0, 1, 1)),
        ({"truncation": 0.3}, (0, 1, 1)),
        ({"truncation": 0.31}, (0, 0, 1)),
        ({"truncation": 0.5}, (0, 0, 1)),
        ({"truncation": 0.51}, (0, 0, 0)),
        ({"high": 40}, (1, 1, 1)),
        ({"high": 39.9}, (0, 1, 1)),
        ({"high": 25}, (0, 1, 1)),
        ({"high": 24.9}, (0, 0, 0)),
    ],
)
def test_difficulties(change: dict[str, float], counts: tuple[int, int, int]) -> None:
    """An object too hard is neither missed nor found, and its detection no false positive."""
    hard = row("Car", 400, **change)
    truth, found = many([row(), hard], [row(), hard])
    _, missed = many([row(), hard], [row()])
    for curve, without in zip(*(evaluate_kitti(truth, them, ["Car"]) for them in (found, missed)), strict=True):
        np.testing.assert_array_equal(curve.objects, FRAMES * (1 + np.array(counts)))
        np.testing.assert_array_equal(curve.precision, np.ones((3, 41)))
        for level in range(3):
            expected = [1.0] * 21 + [0.0] * 20 if counts[level] else [1.0] * 41
            np.testing.assert_array_equal(without.precision[level], expected)


def test_a_second_detection_of_an_object_is_a_false_positive() -> None:
    truth, found = many([row()], [row(), row(score=0.005)])
    expected = np.maximum.accumulate([(k + 1) / (2 * k + 1) for k in range(41)][::-1])[::-1]
    for curve in evaluate_kitti(truth, found, ["Car"]):
        np.testing.assert_allclose(curve.precision, [expected] * 3)


def test_detections_too_low_for_the_benchmark() -> None:
    low, enough = row("Car", 700, high=24.9), row("Car", 700, high=25)
    assert points(*many([row()], [row(), low])) == ONLY
    assert points(*many([row()], [row(), enough])) == {metric: pytest.approx(0.5) for metric in METRICS}
    assert points(*many([row()], [row(), enough]), level=0) == ONLY  # below 40 pixels
    # An object that such a detection is assigned to is neither found nor missed, whatever the detection's class.
    for name in ("Car", "Tram"):
        truth, found = many([row("Car", high=25)], [row(name, high=24.9)])
        assert set(points(truth, found).values()) == {0.0}
        truth, found = many([row("Car", 400), row("Car", high=25)], [row("Car", 400), row(name, high=24.9)])
        curves = evaluate_kitti(truth, found, ["Car"])
        np.testing.assert_array_equal(curves[0].precision[1], [1.0] * 21 + [0.0] * 20)
    # One that is high enough is preferred at a threshold, but the first pass looks at the score alone.
    both = [row("Car", high=24.9), row("Car", high=25, score=0.1)]
    assert set(points(*many([row("Car", high=25)], both)).values()) == {0.0}
    assert points(*many([row("Car", high=25)], [row("Car", high=24.9, score=0.1), row("Car", high=25)])) == ONLY


def test_thresholds_come_from_the_best_score_and_positives_from_the_largest_overlap() -> None:
    better, worse = row(score=0.5), row("Car", 110, alpha=0.5 + math.pi / 2)  # 70 of 90 pixels
    truth, found = many([row()], [better, worse])
    image, oriented = evaluate_kitti(truth, found, ["Car"])[:2]
    # Thresholds are the scores of `worse`, 0.99 to 0.59; `better` has 0.49 at the most, so that it takes no part.
    np.testing.assert_array_equal(image.precision, np.ones((3, 41)))
    np.testing.assert_allclose(oriented.precision, np.full((3, 41), 0.5))
    better = row(score=0.005)
    image, oriented = evaluate_kitti(*many([row()], [better, worse]), ["Car"])[:2]
    # At the threshold k the k before it are found twice: `better` is taken, `worse` is left.
    counts = np.arange(41)
    precision = (counts + 1) / (2 * counts + 1)
    np.testing.assert_allclose(image.precision[0], precision)
    np.testing.assert_allclose(oriented.precision[0], (counts + 0.5) / (2 * counts + 1))


@pytest.mark.parametrize("turn, similarity", [(0, 1), (math.pi, 0), (math.pi / 2, 0.5), (2 * math.pi / 3, 0.25)])
def test_orientation_similarity(turn: float, similarity: float) -> None:
    found = points(*many([row()], [row(alpha=0.5 + turn)]))
    assert found == {**ONLY, "aos": pytest.approx(similarity, abs=1e-15)}


def test_unknown_alpha() -> None:
    truth, found = many([row()], [row()])
    one = dataclasses.replace(found[3], types=("Tram",), alpha=np.array([-10.0]))
    result = points([*truth, record()], [*found, one])
    assert np.isnan(result.pop("aos")) and set(result.values()) == {1.0}
    assert points(*many([row(alpha=-10)], [row()]))["aos"] == pytest.approx((1 + math.cos(10.5)) / 2)


def test_any_class_and_its_minimum_overlaps() -> None:
    moved = row("Tram", 100, x=10 + 4.0 / 3, yaw=0)  # half the area of both from above: overlap 1/2
    truth, found = many([row("Tram", yaw=0)], [moved])

    def numbers(**options) -> dict[str, float]:
        curves = evaluate_kitti(truth, found, ["Tram"], **options)
        return {f"{c.metric}@{c.min_overlap:.2f}": float(c.precision[1].mean()) for c in curves}

    near = {"2d@0.50": 1, "aos@0.50": 1, "bev@0.25": 1, "3d@0.25": 1}
    assert numbers().keys() == {*near, "bev@0.50", "3d@0.50"} and numbers().items() >= near.items()
    strict = numbers(min_overlaps={"tram": (0.6, 0.51)})
    assert strict == {"2d@0.60": 1, "aos@0.60": 1, "bev@0.60": 0, "bev@0.51": 0, "3d@0.60": 0, "3d@0.51": 0}
    assert set(numbers(min_overlaps={"tram": (0.49, 0.4)}).values()) == {1}
    for wrong in ((0.5,), (0.5, 1.0), (-0.1, 0.5)):
        with pytest.raises(ConfigError, match="minimum overlaps of Tram"):
            numbers(min_overlaps={"Tram": wrong})


def test_the_height_matters_in_3d_alone() -> None:
    raised = points(*many([row()], [row(y=1.6 - 0.4)]))  # 1.1 of 1.9 m
    assert raised == {**ONLY, "3d": 0.0}


def test_bad_input_is_one_line() -> None:
    truth, found = many([row()], [row()], 2)
    with pytest.raises(DataError, match=r"^2 images have labels and 1 have detections"):
        evaluate_kitti(truth, found[:1], ["Car"])
    with pytest.raises(DataError, match=r"detections of image 1 .* no scores"):
        evaluate_kitti(truth, [found[0], truth[1]], ["Car"])
    wrong = dataclasses.replace(found[1], location=np.array([[0, 1, np.nan]]))
    with pytest.raises(DataError, match=r"detections of image 1 .*: location is \[ 0.  1. nan\]"):
        evaluate_kitti(truth, [found[0], wrong], ["Car"])


def test_the_table() -> None:
    truth, found = many([row("Car")], [row("Car", alpha=0.5 + math.pi / 2)])
    lines = table(evaluate_kitti(truth, found, ("Car", "Cyclist"))).splitlines()
    assert len(lines) == 2 + 12
    assert lines[1].split() == ["class", "metric", "overlap"] + ["easy", "moderate", "hard"] * 2
    assert lines[3].split() == ["Car", "aos", "0.70"] + ["50.00"] * 6
    assert lines[7].split() == ["Car", "3d", "0.50"] + ["100.00"] * 6
    assert lines[8].split() == ["Cyclist", "2d", "0.50"] + ["-"] * 6
    assert len({len(line) for line in lines}) == 1


# The rules once more: one image, one object, one threshold after another.

TYPES = ("Car", "Van", "Pedestrian", "Person_sitting", "DontCare")


def crowd(seed: int, frames: int = 12) -> tuple[list[KittiObjects], list[KittiObjects]]:
    """Images of objects close together, of all difficulties and about 25 or 40 high, and detections beside them."""
    rng = np.random.default_rng(seed)
    truth, found = [], []
    for _ in range(frames):
        count, more = int(rng.integers(0, 9)), int(rng.integers(0, 15))
        left, top = rng.uniform(0, 60, count), rng.uniform(0, 10, count)
        bottom = top + rng.choice([24.5, 25, 27, 39.5, 41, 50], count)
        columns = [rng.choice([0, 0, 0, 0.2, 0.4, 0.6], count), rng.choice([0, 0, 0, 1, 2, 3], count)]
        columns += [rng.uniform(-3, 3, count), left, top, left + rng.uniform(30, 60, count), bottom]
        columns += [rng.uniform(1, 2, count), rng.uniform(1, 3, count), rng.uniform(3, 5, count)]
        columns += [rng.uniform(-3, 3, count), rng.uniform(1, 2, count), rng.uniform(10, 14, count)]
        labels = np.stack([*columns, rng.uniform(-4, 4, count)], axis=1)
        names = rng.choice(TYPES, count, p=[0.5, 0.1, 0.25, 0.05, 0.1])
        truth.append(objects_of_rows([str(name) for name in names], labels))
        of = rng.integers(0, count, more if count else 0)
        size = [0, 0, 1, 4, 1, 4, 1, 0.1, 0.1, 0.2, 0.2, 0.1, 0.2, 0.1]
        rows = labels[of] + rng.normal(0, 0.5, (len(of), 14)) * size
        score = rng.integers(0, 100, (len(of), 1)) / 100
        its = np.where(rng.uniform(size=len(of)) < 0.7, names[of], rng.choice(TYPES[:3], len(of)))
        its = [{"Van": "Car", "DontCare": "Car"}.get(str(name), str(name)) for name in its]
        found.append(objects_of_rows(its, np.concatenate([rows, score], axis=1)))
    return truth, found


def footprint(one: KittiObjects, i: int) -> shapely.Polygon:
    """The rectangle on the ground, turned by -yaw as z points away and not up."""
    length, width = one.size[i, 2] / 2, one.size[i, 1] / 2
    box = shapely.affinity.rotate(shapely.box(-length, -width, length, width), -one.yaw[i], (0, 0), use_radians=True)
    return shapely.affinity.translate(box, one.location[i, 0], one.location[i, 2])


def slow_overlap(metric: str, found: KittiObjects, j: int, truth: KittiObjects, i: int, of_found: bool) -> float:
    """Intersection over union, or over the detection alone."""
    if metric == "2d":
        one, other = shapely.box(*found.boxes[j]), shapely.box(*truth.boxes[i])
    else:
        one, other = footprint(found, j), footprint(truth, i)
    shared, ours, its = one.intersection(other).area, one.area, other.area
    if metric == "3d":
        bottom = min(found.location[j, 1], truth.location[i, 1])
        top = max(found.location[j, 1] - found.size[j, 0], truth.location[i, 1] - truth.size[i, 0])
        shared *= max(0.0, bottom - top)
        ours, its = ours * found.size[j, 0], its * truth.size[i, 0]
    return shared / (ours if of_found else ours + its - shared)


def slow_curve(
    truth: Sequence[KittiObjects], found: Sequence[KittiObjects], name: str, level: int, metric: str, limit: float
) -> tuple[list[float], list[float]]:
    """Precision and orientation similarity, without the step that makes them never rise; [] without an object."""
    frames, count = [], 0
    for labels, results in zip(truth, found, strict=True):
        objects, regions, low, own = [], [], set(), set()  # objects: (place, whether it counts)
        for i, kind in enumerate(labels.types):
            fits = labels.occlusion[i] <= (0, 1, 2)[level] and labels.truncation[i] <= (0.15, 0.3, 0.5)[level]
            fits = fits and labels.boxes[i, 3] - labels.boxes[i, 1] >= (40, 25, 25)[level]
            if kind == name or (name, kind) in (("Car", "Van"), ("Pedestrian", "Person_sitting")):
                objects.append((i, bool(kind == name and fits)))
            elif kind == "DontCare":
                regions.append(i)
        for j, kind in enumerate(results.types):
            if results.boxes[j, 3] - results.boxes[j, 1] < (40, 25, 25)[level]:
                low.add(j)
            elif kind == name:
                own.add(j)
        overlap = {
            (i, j): slow_overlap(metric, results, j, labels, i, False) for i, _ in objects for j in sorted(low | own)
        }
        taken_up = {j for j in own for i in regions if slow_overlap(metric, results, j, labels, i, True) > limit}
        count += sum(counts for _, counts in objects)
        frames.append((labels, results, objects, low, own, overlap, taken_up))

    def one_pass(frame: tuple, choose: Callable[[list[int], int], int], threshold: float) -> tuple[list, set[int]]:
        """Pairs of true positives, and all detections that are assigned."""
        _, results, objects, low, _, overlap, _ = frame
        assigned: set[int] = set()
        pairs = []
        for i, counts in objects:
            fits = [j for (k, j), value in overlap.items() if k == i and value > limit]
            fits = [j for j in fits if j not in assigned and results.scores[j] >= threshold]
            if fits:
                j = choose(fits, i)
                assigned.add(j)
                if counts and j not in low:
                    pairs.append((i, j))
        return pairs, assigned

    scores: list[float] = []
    for frame in frames:
        its = np.asarray(frame[1].scores)
        pairs, _ = one_pass(frame, lambda fits, _, its=its: fits[int(np.argmax(its[fits]))], -math.inf)
        scores += [its[j] for _, j in pairs]
    scores.sort(reverse=True)
    thresholds: list[float] = []
    wanted = 0.0  # recall, added up as the program does it: rounding decides between two that are equally near
    for i, score in enumerate(scores):
        here, next_one = (i + 1) / count, (i + 2) / count
        if i == len(scores) - 1 or next_one - wanted >= wanted - here:
            thresholds.append(score)
            wanted += 1 / 40
    precision, similarity = [], []
    for threshold in thresholds:
        hits, wrong, alike = 0, 0, 0.0
        for frame in frames:
            labels, results, _, low, own, overlap, taken_up = frame

            def nearest(fits: list[int], i: int, low: set[int] = low, overlap: dict = overlap) -> int:
                high = [j for j in fits if j not in low]
                return max(high, key=lambda j: overlap[i, j]) if high else fits[0]

            pairs, assigned = one_pass(frame, nearest, threshold)
            hits += len(pairs)
            wrong += sum(results.scores[j] >= threshold for j in own - assigned - taken_up)
            alike += sum((1 + math.cos(labels.alpha[i] - results.alpha[j])) / 2 for i, j in pairs)
        precision.append(hits / (hits + wrong) if hits + wrong else 0.0)
        similarity.append(alike / (hits + wrong) if hits + wrong else 0.0)
    return precision, similarity


@pytest.mark.parametrize("seed", range(3))
def test_curves_are_those_of_the_rules_applied_one_by_one(seed: int) -> None:
    truth, found = crowd(seed, frames=35)
    curves = evaluate_kitti(truth, found, ("Car", "Pedestrian"), min_overlaps={"Car": (0.4, 0.25)})
    slow: dict[tuple, tuple[list[float], list[float]]] = {}
    for curve in curves:
        for level in range(3):
            metric = "2d" if curve.metric == "aos" else curve.metric
            key = (curve.name, level, metric, curve.min_overlap)
            if key not in slow:
                slow[key] = slow_curve(truth, found, *key)
            values = slow[key][curve.metric == "aos"]
            expected = [max([*values[k:], 0.0]) for k in range(41)]
            assert curve.objects[level] > 0
            np.testing.assert_allclose(curve.precision[level], expected, rtol=0, atol=1e-12, err_msg=str(key))
    assert sum(len(values) for values, _ in slow.values()) > 150 and min(min(v) for v, _ in slow.values() if v) < 0.5


def test_the_curves_do_not_depend_on_the_order_of_frames_and_detections() -> None:
    """Where no two detections have the same score."""
    rng = np.random.default_rng(5)
    truth, found = crowd(5, frames=20)
    found = [dataclasses.replace(one, scores=one.scores + rng.uniform(0, 0.01, len(one))) for one in found]
    order = rng.permutation(len(truth))
    mixed = [take(found[k], rng.permutation(len(found[k]))) for k in order]
    names = ("Car", "Pedestrian")
    same(evaluate_kitti(truth, found, names), evaluate_kitti([truth[k] for k in order], mixed, names))


def test_the_curves_of_a_mirrored_world_and_of_a_moved_one_are_the_same() -> None:
    truth, found = crowd(6, frames=20)
    curves = evaluate_kitti(truth, found, ["Car", "Pedestrian"])

    def mirrored(one: KittiObjects) -> KittiObjects:
        boxes = np.stack([1242 - one.boxes[:, 2], one.boxes[:, 1], 1242 - one.boxes[:, 0], one.boxes[:, 3]], axis=1)
        turned = {"alpha": np.pi - one.alpha, "yaw": np.pi - one.yaw}
        return dataclasses.replace(one, boxes=boxes, location=one.location * [-1, 1, 1], **turned)

    def moved(one: KittiObjects) -> KittiObjects:
        return dataclasses.replace(one, location=one.location + [12.5, 0, 31])

    for change in (mirrored, moved):
        same(
            curves,
            evaluate_kitti([change(one) for one in truth], [change(one) for one in found], ["Car", "Pedestrian"]),
        )


def take(one: KittiObjects, those: np.ndarray) -> KittiObjects:
    fields = [field.name for field in dataclasses.fields(one) if field.name != "types"]
    arrays = {name: getattr(one, name)[those] for name in fields}
    return KittiObjects(types=tuple(one.types[k] for k in those), **arrays)


def same(some: list[Curve], others: list[Curve]) -> None:
    for one, other in zip(some, others, strict=True):
        assert (one.precision > 0).any()
        np.testing.assert_allclose(one.precision, other.precision, rtol=0, atol=1e-12)


def test_pairs_in_several_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, found = crowd(7)
    whole = evaluate_kitti(truth, found, ["Car"])
    monkeypatch.setattr(kitti, "_PAIRS_AT_ONCE", 5)
    same(whole, evaluate_kitti(truth, found, ["Car"]))


def test_perfect_detections_of_real_labels() -> None:
    """Precision 1 at every threshold there is; fewer than 41 objects have fewer thresholds, as many as there are."""
    folder = DATA / "kitti_tiny" / "training" / "label_2"
    if not folder.is_dir():
        pytest.skip(f"no {folder}: set KPJAX_DATA")
    truth = [read_objects(str(path)) for path in sorted(folder.iterdir())]
    rng = np.random.default_rng(0)
    found = [as_found(one, rng.uniform(size=sum(name != "DontCare" for name in one.types))) for one in truth]
    curves = evaluate_kitti(truth, found, ("Car", "Pedestrian", "Cyclist"))
    assert curves[0].objects[1] > 41
    for curve in curves:
        for level in range(3):
            count = min(curve.objects[level], 41)
            assert count > 0
            expected = [1.0] * count + [0.0] * (41 - count)
            np.testing.assert_allclose(curve.precision[level], expected, err_msg=f"{curve.name} {curve.metric}")
