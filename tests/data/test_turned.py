"""Images that EXIF turns: training, evaluation and prediction use them alike, as the setting and their size say."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageOps

from kpjax.config import Config, DataConfig
from kpjax.data.memory import memory_batches
from kpjax.data.opening import open_source
from kpjax.data.pipeline import train_batches
from kpjax.data.turned import Turns, count_turns, notice, pixels_of
from kpjax.errors import ConfigError, DataError
from kpjax.images.decode import turned, turns
from tests.folders import SIZES, picture


def with_exif(image: Image.Image, orientation: int, path: pathlib.Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_as_pillow_turns(orientation: int) -> None:
    image = picture(0, 5, 9)
    image.getexif()[0x0112] = orientation
    np.testing.assert_array_equal(turned(np.asarray(image), orientation), np.asarray(ImageOps.exif_transpose(image)))


@pytest.mark.parametrize(
    ("orientation", "stored", "stated", "by_size"),
    [
        (6, (30, 40), (40, 30), True),
        (6, (30, 40), (30, 40), False),
        (6, (30, 30), (30, 30), False),
        (3, (30, 40), (30, 40), False),
        (1, (30, 40), (40, 30), False),
        (8, (30, 40), (41, 30), False),
    ],
)
def test_the_annotated_size_says_whether_an_image_is_turned(
    orientation: int, stored: tuple[int, int], stated: tuple[int, int], by_size: bool
) -> None:
    assert turns(orientation, stored, stated, "size") == by_size
    assert turns(orientation, stored, stated, "apply") == (orientation != 1)
    assert not turns(orientation, stored, stated, "ignore")


@pytest.fixture
def photographs(folder: Callable[..., DataConfig]) -> Callable[..., DataConfig]:
    """The seven images; 1 is annotated as stored, 2 square, 4 larger than the canvas, 5 grey and 6 not turned."""
    orientations = {0: 6, 1: 8, 2: 3, 3: 5, 4: 7, 5: 8}
    sizes = {**dict(enumerate(SIZES)), 4: (50, 90)}
    images = pathlib.Path(folder().train.images)
    for n, orientation in orientations.items():
        image = picture(n, *sizes[n]).convert("L" if n == 5 else "RGB")
        with_exif(image, orientation, images / (f"sub/{n}.jpg" if n == 1 else f"{n}.jpg"))

    def make(shown: tuple[int, ...] = (0, 3, 4, 5), **fields) -> DataConfig:
        def edit(d: dict) -> None:
            for n in range(7):
                height, width = sizes[n]
                d["images"][n].update(height=width, width=height) if n in shown else None

        return folder(edit, **fields)

    return make


@pytest.mark.parametrize(
    ("exif", "shown", "expected"),
    [
        ("size", (0, 3, 4, 5), (0, 3, 4, 5)),
        ("apply", (0, 1, 3, 4, 5), (0, 1, 2, 3, 4, 5)),
        ("ignore", (), ()),
    ],
)
def test_training_and_evaluation_see_the_same_pixels(
    photographs: Callable[..., DataConfig], exif: str, shown: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    if exif == "ignore":
        shown = ()
    fields = {} if 4 in shown else {"bad_images": "skip"}  # without its turn image 4 has another size
    data = photographs(shown, exif=exif, **fields)
    source = open_source(data, "train")
    stream = train_batches(source, data, batch=7, seed=0, shuffle=False)
    ours, theirs = next(stream), next(memory_batches(source, data, batch=7, seed=0, shuffle=False))
    np.testing.assert_array_equal(ours["canvas"], theirs["canvas"])
    np.testing.assert_array_equal(next(stream)["canvas"], ours["canvas"])
    for n in range(7):
        if n == 4 and not shown:
            continue
        stored = Image.open(source.files[n])
        seen = ImageOps.exif_transpose(stored) if n in expected else stored
        image = np.asarray(seen.convert("RGB"))
        np.testing.assert_array_equal(pixels_of(source, n), image)
        if n != 4:  # which is shrunk
            np.testing.assert_array_equal(ours["canvas"][n, : image.shape[0], : image.shape[1]], image)


@pytest.mark.parametrize(("exif", "shown"), [("apply", (0, 3, 4, 5)), ("ignore", (0, 1, 3, 4, 5))])
def test_a_setting_against_the_annotated_size_is_refused(
    photographs: Callable[..., DataConfig], exif: str, shown: tuple[int, ...]
) -> None:
    data = photographs(shown, exif=exif)
    with pytest.raises(DataError, match=rf"\d\.jpg: the file is .*config\.data\.exif='{exif}' says: set 'size'"):
        next(train_batches(open_source(data, "train"), data, batch=7, seed=0, shuffle=False))


def test_a_run_says_what_it_does_with_them(photographs: Callable[..., DataConfig]) -> None:
    source = open_source(photographs(), "train")
    assert count_turns(source) == Turns(looked_at=7, as_shown=4, as_stored=1, unclear=1)
    assert count_turns(source, most=2).looked_at == 2
    line = notice(source)
    assert line.startswith("6 of 7 images are shown turned by their EXIF orientation: 4 turned")
    assert "1 used as stored, as their annotated size says" in line and "set config.data.exif='apply'" in line
    assert "turned, as config.data.exif='apply'" in notice(open_source(photographs(exif="apply"), "train"))
    stored = notice(open_source(photographs(()), "train"))
    assert "'apply'" not in stored and "5 used as stored" in stored


def test_nothing_is_said_where_nothing_is_turned(folder: Callable[..., DataConfig]) -> None:
    assert notice(open_source(folder(), "train")) == ""


def test_what_would_not_heed_the_setting_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match="exif is 'apply', but KITTI's boxes and cameras fit the pixels as stored"):
        open_source(DataConfig(source="kitti", kitti_dir=str(tmp_path), exif="apply"), "train")
    with pytest.raises(ConfigError, match=r"config\.data\.exif is 'turn'; choose one of 'size', 'apply', 'ignore'"):
        Config(steps=1, data=DataConfig(exif="turn")).check()
