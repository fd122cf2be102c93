"""3D boxes in the image and seen from above: where corners are, what is cut off, and that both views agree."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kpjax.commands import detect
from kpjax.data.kitti_files import KittiObjects, objects_of_rows, read_calibration, read_objects
from kpjax.data.source import Source
from kpjax.inference.outputs import Evaluation
from kpjax.objects import Detections
from kpjax.show import boxes3d
from kpjax.show.boxes3d import birds_eye_view, boxes_of, corners, draw_boxes3d, draw_scene, project, reach_of
from kpjax.show.drawing import class_color
from kpjax.show.pictures import show
from tests.fakes import marker_source
from tests.golden.cases import DATA

NAMES = ("car", "person")
CAMERA = np.array([[200.0, 0, 160, 0], [0, 200, 100, 0], [0, 0, 1, 0]])
AHEAD = math.pi / 2 * -1  # the yaw of a car that drives away from the camera
BOX = np.array([1.0, 1.5, 20, 1.5, 2, 4, AHEAD])  # x y z, h w l, yaw
IMAGE = np.full((200, 320, 3), 128, np.uint8)
NONE = np.zeros((0, 7))


def box(**changes: float) -> np.ndarray:
    """BOX with some of its numbers changed, (1, 7)."""
    names = ("x", "y", "z", "h", "w", "l", "yaw")
    return np.array([[changes.get(name, value) for name, value in zip(names, BOX, strict=True)]])


def annotation(boxes: np.ndarray) -> KittiObjects:
    """A label file's objects with these 3D boxes."""
    rows = np.zeros((len(boxes), 14))
    rows[:, 7:10], rows[:, 10:13], rows[:, 13] = boxes[:, 3:6], boxes[:, :3], boxes[:, 6]
    return objects_of_rows(["Van"] * len(boxes), rows)


def colored(image: np.ndarray) -> np.ndarray:
    """(2, n) rows and columns of the pixels that have the colour of class 0."""
    return np.stack(np.nonzero((image == class_color(0)).all(-1)))


def without_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boxes3d, "load_font", lambda side, room: None)


def test_corners_where_the_length_lies_along_x() -> None:
    (found,) = corners(box(yaw=0.0))
    bottom = [[3, 1.5, 21], [3, 1.5, 19], [-1, 1.5, 19], [-1, 1.5, 21]]  # front left and right, rear right and left
    np.testing.assert_allclose(found[:4], bottom, atol=1e-12)
    np.testing.assert_allclose(found[4:], np.array(bottom) - [0, 1.5, 0], atol=1e-12)  # y is down
    assert found.dtype == np.float64 and corners(NONE).shape == (0, 8, 3)


def test_corners_where_the_front_points_to_the_camera() -> None:
    (found,) = corners(box(yaw=math.pi / 2))
    # What comes towards the camera has its left side on the image's right.
    np.testing.assert_allclose(found[:4, 0], [2, 0, 0, 2], atol=1e-12)
    np.testing.assert_allclose(found[:4, 2], [18, 18, 22, 22], atol=1e-12)
    (away,) = corners(box(yaw=AHEAD))
    np.testing.assert_allclose(away[:2], [[0, 1.5, 22], [2, 1.5, 22]], atol=1e-12)


def test_projection() -> None:
    # 200 * 3 / 4 + 160, 200 * -1 / 4 + 100; the second camera stands 0.5 m left of the first, and 0.25 m behind it
    np.testing.assert_allclose(project([3.0, -1, 4], CAMERA), [310, 50])
    other = CAMERA @ np.array([[1, 0, 0, 0.5], [0, 1, 0, 0], [0, 0, 1, 0.25], [0, 0, 0, 1]])
    np.testing.assert_allclose(project([[[3.0, -1, 4]]], other), [[[200 * 3.5 / 4.25 + 160, -200 / 4.25 + 100]]])
    behind = project([[0.0, 0, 0], [1, 1, -5], [0, 0, 0.05], [0, 0, 0.2]], CAMERA)
    np.testing.assert_array_equal(np.isnan(behind).all(-1), [True, True, True, False])


def test_a_box_colours_its_corners_and_nothing_outside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    without_letters(monkeypatch)
    for yaw in (0.0, 0.4, AHEAD, 2.5):
        boxes = box(z=8.0, yaw=yaw)
        before = IMAGE.copy()
        drawn = draw_boxes3d(before, boxes, [0], CAMERA, NAMES, [0.9])
        np.testing.assert_array_equal(before, IMAGE)  # a copy is drawn on
        assert drawn.shape == IMAGE.shape and drawn.dtype == np.uint8
        points = project(corners(boxes)[0], CAMERA)
        assert (drawn[tuple(np.floor(points).astype(int).T[::-1])] == class_color(0)).all()
        rows, columns = np.nonzero((drawn != IMAGE).any(-1))
        # the hull: in every direction nothing lies farther out than a corner, but for the width of lines
        for angle in np.linspace(0, 2 * np.pi, 60):
            way = np.array([np.cos(angle), np.sin(angle)])
            assert (np.stack([columns, rows], -1) @ way).max() < (points @ way).max() + 3


def test_the_front_is_tinted(monkeypatch: pytest.MonkeyPatch) -> None:
    without_letters(monkeypatch)
    for yaw, front, rear in ((math.pi / 2, 6.0, 10.0), (AHEAD, 10.0, 6.0)):
        # seen from the right, so that the faces are apart in the image
        drawn = draw_boxes3d(IMAGE, box(x=-4.0, z=8.0, yaw=yaw), [1], CAMERA, NAMES)
        for z, tinted in ((front, True), (rear, False)):
            x, y = project([-4.0, 0.75, z], CAMERA)
            assert (drawn[int(y), int(x)] != 128).any() == tinted, (yaw, z)


def test_nearer_boxes_lie_over_farther_ones() -> None:
    boxes = np.concatenate([box(z=8.0, yaw=0.0), box(z=8.0, yaw=0.0), box(z=8.0, yaw=0.0)])
    boxes[1, 2] -= 0.01
    drawn = draw_boxes3d(IMAGE, boxes, [0, 1, 0], CAMERA, NAMES, [0.9, 0.5, 0.9])
    x, y = np.floor(project(corners(boxes[1:2])[0, 2], CAMERA)).astype(int)
    np.testing.assert_array_equal(drawn[y, x], class_color(1))


def test_boxes_that_cross_the_camera_s_plane_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    without_letters(monkeypatch)
    # From 4 m behind the camera to 4 m before it, on the left: seen are the lines that run out of the image.
    drawn = draw_boxes3d(IMAGE, box(x=-2.0, z=0.0, l=8.0), [0], CAMERA, NAMES)
    for corner in ((-1, 1.5, 4), (-1, 0, 4)):
        x, y = np.floor(project(corner, CAMERA)).astype(int)
        np.testing.assert_array_equal(drawn[y, x], class_color(0))
    x, y = np.floor(project((-1, 1.5, 3), CAMERA)).astype(int)  # of an edge that ends behind the camera
    assert (drawn[y - 1 : y + 2, x - 1 : x + 2] == class_color(0)).all(-1).any()
    assert colored(drawn)[1].max() < 160  # nothing is mirrored to the right
    for z in (-20.0, -2.1, -1.95):
        np.testing.assert_array_equal(draw_boxes3d(IMAGE, box(z=z, l=4.0), [0], CAMERA, NAMES), IMAGE)
    np.testing.assert_array_equal(draw_boxes3d(IMAGE, box(x=90.0), [0], CAMERA, NAMES), IMAGE)


def test_every_edge_reaches_its_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each edge of a box that leaves the image is there up to the border, whichever way it runs."""
    without_letters(monkeypatch)
    rng = np.random.default_rng(0)
    for _ in range(30):
        boxes = rng.uniform([-4, 0, 1, 1, 1, 1, -3], [4, 3, 9, 3, 4, 9, 3])[None]
        drawn = draw_boxes3d(IMAGE, boxes, [0], CAMERA, NAMES)
        points = corners(boxes)[0]
        for a, b in [(k, k + 4) for k in range(4)] + [(k, (k + 1) % 4) for k in range(4)]:
            along = project(points[a] + (points[b] - points[a]) * np.linspace(0, 1, 50)[:, None], CAMERA)
            for x, y in along[((along > 2) & (along < (318, 198))).all(-1)]:
                near = drawn[int(y) - 2 : int(y) + 3, int(x) - 2 : int(x) + 3]
                assert (near == class_color(0)).all(-1).any(), (boxes, a, b)


def test_values_that_no_picture_could_show() -> None:
    wrong = np.concatenate([box(x=np.nan), box(z=np.inf), box(l=1e30), box(z=1e6), box(y=-1e300), box(yaw=np.nan)])
    labels = np.zeros(len(wrong), int)
    np.testing.assert_array_equal(draw_boxes3d(IMAGE, wrong, labels, CAMERA, NAMES, labels + 0.5), IMAGE)
    plain = birds_eye_view(NONE, [], NAMES, (200, 300), 40)
    np.testing.assert_array_equal(birds_eye_view(wrong, labels, NAMES, (200, 300), 40), plain)
    # large, flat and turned inside out, but possible
    odd = np.concatenate([box(l=900.0), box(h=0.0, w=0.0, l=0.0), box(h=-2.0, l=-4.0), box(z=0.0), box(z=0.0, l=0.0)])
    assert draw_boxes3d(IMAGE, odd, [0, 1, 0, 1, 7], CAMERA, NAMES, np.ones(5)).shape == IMAGE.shape
    assert birds_eye_view(odd, [0, 1, 0, 1, 7], NAMES, (200, 300), 40).shape == (200, 300, 3)


def test_wrong_arrays_are_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        draw_boxes3d(IMAGE.astype(float), box(), [0], CAMERA, NAMES)
    with pytest.raises(ValueError, match="1 boxes and 2 labels"):
        draw_boxes3d(IMAGE, box(), [0, 1], CAMERA, NAMES)
    with pytest.raises(ValueError, match="1 boxes and 2 scores"):
        draw_boxes3d(IMAGE, box(), [0], CAMERA, NAMES, [0.5, 0.5])
    with pytest.raises(ValueError, match="1 boxes and 0 labels"):
        birds_eye_view(box(), [], NAMES, (100, 100))


def test_labels_say_class_score_and_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    said = []
    monkeypatch.setattr(boxes3d, "draw_label", lambda canvas, around, text, *_: said.append((text, around)))
    boxes = np.concatenate([box(x=-6.0, z=8.0), box(z=30.4), box(z=-9.0)])
    draw_boxes3d(IMAGE, boxes, [0, 5, 0], CAMERA, NAMES, [0.5, 0.9, 0.7])
    assert [text for text, _ in said] == ["class 5 0.90 30 m", "car 0.50 10 m"]  # best first, along the ground
    points = project(corners(boxes[1:2])[0], CAMERA)
    np.testing.assert_allclose(said[0][1], [*points.min(0), *points.max(0)])
    said.clear()
    draw_boxes3d(IMAGE, boxes, [0, 5, 0], CAMERA, NAMES)
    assert [text for text, _ in said] == ["car 10 m", "class 5 30 m"]  # nearest first


SIZE = (500, 400)  # of a view from above that reaches 40 m: its camera is 20 pixels above the bottom, 12 pixels a metre
PER_METRE, CAMERA_AT = 12, (480, 200)


def test_from_above_ahead_is_up_and_right_is_right() -> None:
    view = birds_eye_view(box(x=0.0, l=4.0, yaw=AHEAD), [0], NAMES, SIZE, 40)
    rows, columns = colored(view[:440])  # without the legend
    top, left = CAMERA_AT[0] - 22 * PER_METRE, CAMERA_AT[1] - PER_METRE
    assert (columns.min(), columns.max()) == (left, left + 2 * PER_METRE)
    assert rows.max() == top + 4 * PER_METRE and top - 9 <= rows.min() < top  # a line leaves it at the front
    assert set(columns[rows < top]) <= {199, 200, 201}
    right = birds_eye_view(box(x=5.0, l=4.0, yaw=AHEAD), [0], NAMES, SIZE, 40)
    np.testing.assert_array_equal(colored(right[:440])[1], columns + 5 * PER_METRE)


@pytest.mark.parametrize(
    ("yaw", "side"), [(AHEAD, "top"), (math.pi / 2, "bottom"), (0.0, "right"), (math.pi, "left"), (-math.pi, "left")]
)
def test_from_above_the_front_is_where_the_yaw_says(yaw: float, side: str) -> None:
    view = birds_eye_view(box(x=0.0, w=4.0, l=4.0, yaw=yaw), [0], NAMES, SIZE, 40)
    rows, columns = colored(view[:440])
    half = 2 * PER_METRE
    beyond = {
        "top": CAMERA_AT[0] - 20 * PER_METRE - half - rows.min(),
        "bottom": rows.max() - (CAMERA_AT[0] - 20 * PER_METRE + half),
        "left": CAMERA_AT[1] - half - columns.min(),
        "right": columns.max() - (CAMERA_AT[1] + half),
    }
    assert beyond.pop(side) >= 4 and max(beyond.values()) <= 1


def test_found_and_annotated_can_be_told_apart() -> None:
    plain = birds_eye_view(NONE, [], NAMES, SIZE, 40, annotated=annotation(NONE))
    truth = birds_eye_view(NONE, [], NAMES, SIZE, 40, annotated=annotation(box(x=0.0)))
    both = birds_eye_view(box(x=0.0), [0], NAMES, SIZE, 40, annotated=annotation(box(x=0.0)))
    apart = birds_eye_view(box(x=8.0), [0], NAMES, SIZE, 40, annotated=annotation(box(x=0.0)))
    assert not len(colored(truth)[0]) and (truth != plain).any()
    edge = CAMERA_AT[1] - PER_METRE, slice(CAMERA_AT[0] - 21 * PER_METRE, CAMERA_AT[0] - 19 * PER_METRE)
    grey = (truth[edge[1], edge[0]] == boxes3d._NEUTRAL).all(-1)
    assert 0.2 < grey.mean() < 0.8  # dashed
    assert (both[edge[1], edge[0]] == class_color(0)).all()  # what was found lies above
    assert (apart[edge[1], edge[0]] == truth[edge[1], edge[0]]).all()

    image = draw_boxes3d(IMAGE, NONE, [], CAMERA, NAMES, annotated=annotation(box(z=8.0)))
    assert (image != IMAGE).any() and np.ptp(image.astype(int), axis=-1).max() == 0  # grey
    x, y = np.floor(project(corners(box(z=8.0))[0, 2], CAMERA)).astype(int)
    image = draw_boxes3d(IMAGE, box(z=8.0), [0], CAMERA, NAMES, annotated=annotation(box(z=8.0)))
    np.testing.assert_array_equal(image[y, x], class_color(0))


def test_annotations_without_a_size_are_left_out() -> None:
    boxes = np.concatenate([box(), np.array([[-1000.0, -1000, -1000, -1, -1, -1, -10]]), box(z=9.0)])
    np.testing.assert_array_equal(boxes_of(annotation(boxes)), boxes[[0, 2]])


def test_the_field_of_view_is_between_two_lines() -> None:
    plain = birds_eye_view(NONE, [], NAMES, SIZE, 40)
    view = birds_eye_view(NONE, [], NAMES, SIZE, 40, camera=CAMERA, image_width=320)
    # Column 0 is at x = -160 / 200 z, column 320 at x = 160 / 200 z.
    for row in (300, 400, 450):
        (changed,) = np.nonzero((view[row] != plain[row]).any(-1) & (view[row] == boxes3d._NEUTRAL).all(-1))
        aside = 0.8 * (CAMERA_AT[0] - row)
        assert {round(np.abs(changed - CAMERA_AT[1] + sign * aside).min()) for sign in (-1, 1)} == {0}
        assert len(changed) <= 4


def test_rings_are_ten_metres_apart() -> None:
    view = birds_eye_view(NONE, [], NAMES, SIZE, 40)
    column = (view[:, CAMERA_AT[1] - 1] == boxes3d._GRID).all(-1)
    for ring in (10, 20, 30):
        row = CAMERA_AT[0] - ring * PER_METRE
        assert column[row - 2 : row + 3].any() and not column[row + 3 : row + 50].any()


@pytest.mark.parametrize(
    ("boxes", "reach"),
    [
        (NONE, 40),
        (box(z=7.0), 10),
        (box(z=17.9), 20),
        (box(z=18.1), 30),  # its front is at 20.1 m
        (box(x=30.0, z=5.0), 80),  # aside, where the picture is narrower than high
        (box(z=300.0), 40),
        (np.concatenate([box(z=79.5), box(z=-50.0), box(z=np.nan)]), 80),
    ],
)
def test_reach(boxes: np.ndarray, reach: int) -> None:
    assert reach_of(boxes, SIZE) == reach


@pytest.mark.parametrize(("boxes", "count"), [(NONE, 0), (box(z=8.0), 1)])
@pytest.mark.parametrize("size", [(1, 1), (3, 50), (50, 3), (20, 20), (96, 310), (400, 500), (500, 400)])
def test_scenes_of_any_size(size: tuple[int, int], boxes: np.ndarray, count: int) -> None:
    image = np.full((*size, 3), 60, np.uint8)
    found = Detections(np.zeros((count, 4)), np.ones(count), np.zeros(count, int), boxes3d=boxes)
    camera = CAMERA * [[size[1] / 320], [size[0] / 200], [1]]
    scene = draw_scene(image, found, camera, NAMES, 0.5, annotation(boxes))
    factor = max(1, round(384 / max(size)))
    height, width = size[0] * factor, size[1] * factor
    if width >= 2 * height:
        assert scene.shape == (height + width // 2, width, 3)
    else:
        assert scene.shape[0] == height and width + height // 2 <= scene.shape[1] <= width + max(height, width)
    assert scene.dtype == np.uint8 and bool(len(colored(scene[:height, :width])[0])) == bool(count)
    hidden = draw_scene(image, found, camera, NAMES, 1.5)
    assert hidden.shape == scene.shape and not len(colored(hidden)[0])


def test_both_views_of_a_scene_agree() -> None:
    """A box left in the image is left from above; an enlarged image is drawn with its camera enlarged too."""
    image = np.zeros((100, 160, 3), np.uint8)
    for x in (-3.0, 3.0):
        found = Detections(np.zeros((1, 4)), np.ones(1), np.zeros(1, int), boxes3d=box(x=x, z=10.0))
        scene = draw_scene(image, found, CAMERA * [[0.5], [0.5], [1]], NAMES)
        points = 2 * project(corners(box(x=x, z=10.0))[0], CAMERA * [[0.5], [0.5], [1]])
        assert (scene[tuple(np.floor(points).astype(int).T[::-1])] == class_color(0)).all(-1).mean() > 0.7
        view = scene[:150, 320:]  # without the legend
        assert np.sign(colored(view)[1].mean() - view.shape[1] / 2) == np.sign(x)
        true = draw_scene(image, found, CAMERA * [[0.5], [0.5], [1]], NAMES, annotated=annotation(box(x=-x, z=10.0)))
        (aside,) = np.nonzero((true[:100, 320:] != scene[:100, 320:]).any(-1).any(0))
        assert len(aside) and (np.sign(aside - view.shape[1] / 2) == -np.sign(x)).all()


def test_annotated_boxes_fill_their_rectangles_in_photographs() -> None:
    """KITTI's own 2D boxes are those around its 3D boxes, so cameras, corners and yaw fit together."""
    folder = DATA / "kitti_tiny" / "training"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    overlaps = []
    for path in sorted((folder / "label_2").glob("00000?.txt")):
        objects, camera = read_objects(str(path)), read_calibration(str(folder / "calib" / path.name))
        for k in np.flatnonzero((objects.truncation == 0) & (objects.size > 0).all(-1)):
            one = np.concatenate([objects.location[k], objects.size[k], objects.yaw[k : k + 1]])
            points = project(corners(one)[0], camera)
            a, b = np.array([*points.min(0), *points.max(0)]), objects.boxes[k]
            sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
            areas = [np.prod(r[2:] - r[:2]) for r in (a, b)]
            overlaps.append(np.prod(np.maximum(sides, 0)) / (sum(areas) - np.prod(np.maximum(sides, 0))))
    assert len(overlaps) > 5 and np.mean(overlaps) > 0.85 and min(overlaps) > 0.6


def rows_source() -> tuple[Source, list[dict[str, Any]]]:
    plain = marker_source([(100, 160, []), (100, 160, [])])
    labels3d = (annotation(box(x=-2.0, z=10.0)), annotation(NONE))
    source = dataclasses.replace(plain, cameras=np.stack([CAMERA * [[0.5], [0.5], [1]]] * 2), labels3d=labels3d)
    row = {"image_id": int(source.image_ids[0]), "category_id": source.category_ids[0], "bbox": [1.0, 2, 3, 4]}
    return source, [row | {"score": 0.9, "box3d": box(x=2.0, z=10.0)[0].tolist(), "alpha": 0.1}]


def test_evaluation_s_pictures_show_3d_boxes(tmp_path: pathlib.Path) -> None:
    source, rows = rows_source()
    evaluation = Evaluation({}, "", {}, rows, images=2, skipped=0, seconds=1.0, metric="kitti")
    assert show(str(tmp_path / "3d"), evaluation, source) == 2
    pictures = [np.asarray(Image.open(tmp_path / "3d" / f"{i}.jpg")).astype(int) for i in source.image_ids]
    assert pictures[0].shape == pictures[1].shape == (200, 320 + 200, 3)  # also where nothing was found
    x, y = np.floor(2 * project(corners(box(x=2.0, z=10.0))[0, 2], source.cameras[0])).astype(int)  # type: ignore[index]
    assert np.abs(pictures[0][y - 1 : y + 2, x - 1 : x + 2] - class_color(0)).max(-1).min() < 80  # JPEG
    assert pictures[0][:, :160].max() > 150 > pictures[1][:, :160].max()  # the annotated one is on the left
    del rows[0]["box3d"]
    show(str(tmp_path / "2d"), evaluation, source)
    assert Image.open(tmp_path / "2d" / f"{source.image_ids[0]}.jpg").size == (320, 200)


def test_detect_draws_and_writes_3d_boxes() -> None:
    boxes = np.concatenate([box(z=8.00049), box(z=9.0)]).astype(np.float32)
    found = Detections(
        np.zeros((2, 4), np.float32),
        np.array([0.9, 0.1], np.float32),
        np.zeros(2, np.int32),
        boxes3d=boxes,
        alpha=np.array([-1.69123, 0], np.float32),
    )
    shown = detect.Shown(NAMES, 0.3, None)
    (row,) = shown.rows(found)
    assert row["box3d"] == [1.0, 1.5, 8.0, 1.5, 2.0, 4.0, -1.5708] and row["alpha"] == -1.6912
    picture = shown.picture(np.zeros((400, 640, 3), np.uint8), found, CAMERA)
    assert picture.shape == (400, 640 + 400, 3)
    flat = shown.picture(np.zeros((400, 640, 3), np.uint8), found)
    assert flat.shape == (400, 640, 3)
