"""The picture of a first batch is the first step's own input."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import pytest
from PIL import Image

from kpjax.config import Config
from kpjax.data.source import Source, make_source
from kpjax.errors import ConfigError
from kpjax.images.preprocess import COCO_BGR, IMAGENET_RGB
from kpjax.objects import ALL_CLASSES, IGNORE, OBJECT, PointSet, Solid
from kpjax.show.batch import show, to_pixels
from kpjax.show.drawing import class_color
from kpjax.show.skeleton import LEFT, MIDDLE, RIGHT, SIDE_COLORS
from tests.fakes import marker_source


@pytest.mark.parametrize("preprocess", [COCO_BGR, IMAGENET_RGB])
def test_pixels_come_back(preprocess) -> None:  # type: ignore[no-untyped-def]
    image = np.random.default_rng(0).integers(0, 256, (2, 5, 6, 3), np.uint8)
    normalised = np.asarray(preprocess.normalise(image))
    np.testing.assert_array_equal(to_pixels(normalised, preprocess), image)
    # colour jitter leaves the range; the picture stays at its end and does not wrap around
    assert to_pixels(normalised + 100, preprocess).min() == 255


def test_show(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorflow")
    source = marker_source([(64, 64, [(20, 30, 10, 0)]), (64, 64, [])])
    config = Config(batch=2, steps=1)
    config.model.options = {"width": 4, "deconv": (4, 4, 4), "head_channels": 4}
    config.data.canvas = config.augment.height = config.augment.width = 64
    config.data.max_boxes = 4
    config.augment.kind, config.augment.flip, config.augment.color, config.augment.lighting = "none", 0.0, 0.0, 0.0
    path = tmp_path / "new" / "batch.png"
    show(config, str(path), train_source=source)
    said = capsys.readouterr().out
    assert str(path) in said and "1 boxes" in said and said.count("\n") == 1
    picture = np.asarray(Image.open(path).convert("RGB"))
    # 64 pixels are enlarged four times; each tile is an image and its heatmap, 4 pixels apart.
    tiles = [picture[4 + 260 * i :][:256, 4 : 4 + 512] for i in range(2)]
    color = class_color(0)
    boxed = [(tile[:, :256] == color).all(-1) for tile in tiles]
    peaks = [np.abs(tile[:, 256:].astype(int) - np.rint(np.multiply(color, 0.9))).max(-1) <= 1 for tile in tiles]
    (with_object,) = (i for i in range(2) if boxed[i].any())
    assert not boxed[1 - with_object].any() and not peaks[1 - with_object].any()
    # the box x 10..30, y 20..40; its centre (20, 30) lies in the cell of pixels 20..23, 28..31
    rows, columns = np.nonzero(boxed[with_object])
    assert columns.min() == 40 and columns.max() == 4 * 30 - 1 and rows.max() == 4 * 40 - 1
    rows, columns = np.nonzero(peaks[with_object])
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (80, 95, 112, 127)

    with pytest.raises(ConfigError, match="is a folder"):
        show(config, str(tmp_path), train_source=source)


def test_corners_are_shown_in_one_heatmap(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("tensorflow")
    source = marker_source([(63, 63, [(20, 30, 10, 0)])])
    config = Config(batch=1, steps=1)
    config.model.name = "cornernet_hg104"
    config.model.options = {"features": (4, 4), "blocks": (1, 1), "stem": 4, "branch": 4, "head_channels": 4}
    config.data.canvas = 64
    config.augment.height = config.augment.width = 63
    config.data.max_boxes = 4
    config.augment.kind, config.augment.flip, config.augment.color, config.augment.lighting = "none", 0.0, 0.0, 0.0
    show(config, str(tmp_path / "batch.png"), train_source=source)
    picture = np.asarray(Image.open(tmp_path / "batch.png").convert("RGB"))
    scale = (picture.shape[0] - 8) / 63
    heat = picture[4:-4, -4 - round(63 * scale) : -4].astype(int)
    peaks = np.abs(heat - np.rint(np.multiply(class_color(0), 0.9))).max(-1) <= 1
    # x 10 .. 30, y 20 .. 40: the corners' cells, of four pixels, and nothing between them
    for x, y in ((10, 20), (30, 40)):
        assert peaks[round(y * scale), round(x * scale)], (x, y)
    assert not peaks[round(30 * scale), round(20 * scale)] and peaks.mean() < 0.02


def points_source(points: PointSet) -> Source:
    """One image of 64 x 64 pixels with one object, its points at the corners of a square, one of them unlabelled."""
    plain = marker_source([(64, 64, [(32, 32, 24, 0)])])
    keypoints = np.array([[[16.0, 16, 2], [48, 16, 1], [48, 48, 2], [16, 48, 0]]])
    return make_source(
        name=plain.name,
        classes=plain.classes,
        category_ids=plain.category_ids,
        image_ids=plain.image_ids,
        heights=plain.heights,
        widths=plain.widths,
        files=plain.files,
        annotations=dataclasses.replace(plain.annotations, keypoints=keypoints),
        read=plain.read,
        points=points,
    )


@pytest.mark.parametrize("mirrored", [False, True])
def test_joints_are_shown_with_a_heatmap_of_their_own(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], mirrored: bool
) -> None:
    pytest.importorskip("tensorflow")
    points = PointSet(("top_right", "top_left", "bottom_left", "tail"), edges=((0, 1), (1, 2)))
    config = Config(batch=1, steps=1)
    config.model.name = "centernet_r18_pose"
    config.model.options = {"width": 4, "deconv": (4, 4, 4), "head_channels": 4}
    config.data.canvas = config.augment.height = config.augment.width = 64
    config.data.max_boxes = 4
    config.augment.kind, config.augment.color, config.augment.lighting = "none", 0.0, 0.0
    config.augment.flip = float(mirrored)
    show(config, str(tmp_path / "batch.png"), train_source=points_source(points))
    said = capsys.readouterr().out
    assert "1 boxes (0 more are outside the crops) and 3 labelled keypoints" in said and "those of 4 keypoints" in said
    picture = np.asarray(Image.open(tmp_path / "batch.png").convert("RGB"))
    assert picture.shape == (4 + 256 + 4, 4 + 3 * 256 + 4, 3)  # the image, the classes' heatmaps, the points'
    image, centers, joints = (picture[4:260, 4 + 256 * k :][:, :256].astype(int) for k in range(3))

    def hot(panel: np.ndarray, x: float, y: float, color: tuple[int, int, int]) -> bool:
        """Whether the cell of a pixel of the 64 x 64 image is a peak of a colour."""
        return bool(np.abs(panel[int(4 * y), int(4 * x)] - np.rint(np.multiply(color, 0.9))).max() <= 1)

    # In a mirror the point that was called "top_right" is "top_left"; "bottom_left" has no partner.
    left, right, middle = (SIDE_COLORS[side] for side in (LEFT, RIGHT, MIDDLE))
    (x1, first), (x2, second) = ((48, left), (16, right)) if mirrored else ((16, right), (48, left))
    assert hot(joints, x1, 16, first) and hot(joints, x2, 16, second) and hot(joints, x2, 48, middle)
    assert not any(hot(joints, x1, 48, color) for color in SIDE_COLORS)  # unlabelled
    assert hot(centers, 34, 34, class_color(0)) and not hot(centers, x1, 16, class_color(0))
    assert tuple(image[4 * 16, 4 * 32]) == middle  # the line between the sides


def test_regions_to_ignore_of_a_detector_of_3d_boxes_have_no_rectangle(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorflow")
    plain = marker_source([(64, 64, [(20, 30, 10, 0), (45, 20, 8, 1)])])
    (objects,) = plain.objects
    solid = Solid(np.full(2, 10, np.float32), np.full((2, 3), 2, np.float32), np.zeros(2, np.float32))
    labels, role = np.array([0, ALL_CLASSES], np.int32), np.array([OBJECT, IGNORE], np.int32)
    source = dataclasses.replace(
        plain,
        objects=(dataclasses.replace(objects, labels=labels, role=role, solid=solid),),
        cameras=np.eye(3, 4)[None],
    )
    config = Config(batch=1, steps=1)
    config.model.name = "centernet_r18_3d"
    config.model.options = {"width": 4, "deconv": (4, 4, 4), "head_channels": 4}
    config.data.canvas = config.augment.height = config.augment.width = 64
    config.data.max_boxes = 4
    config.augment.kind, config.augment.flip, config.augment.color, config.augment.lighting = "none", 0.0, 0.0, 0.0
    config.eval.resolution = "fixed"
    show(config, str(tmp_path / "batch.png"), train_source=source)
    assert "1 boxes (0 more" in capsys.readouterr().out
    picture = np.asarray(Image.open(tmp_path / "batch.png").convert("RGB"))[4:260, 4:260]
    assert tuple(picture[4 * 30, 4 * 10]) == class_color(0)  # the left edge of the object's box
    assert not picture[: 4 * 28, 4 * 31 :].any(axis=-1)[:, : 4 * (45 - 31)].any()  # nor is there a label
