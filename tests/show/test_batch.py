"""The picture of a first batch is the first step's own input."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
from PIL import Image

from kpjax.config import Config
from kpjax.errors import ConfigError
from kpjax.images.preprocess import COCO_BGR, IMAGENET_RGB
from kpjax.show.batch import show, to_pixels
from kpjax.show.drawing import class_color
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
