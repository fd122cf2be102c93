"""check-data names what can be used as it stands and is hardly meant so, each with where it is."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kpjax.config import DataConfig
from kpjax.data.opening import open_source
from kpjax.datasets import check
from kpjax.datasets.check_mistakes import POINT_FRACTIONS, probable_mistakes
from tests.datasets.test_check import found, settings


def boxes_of(folder: Callable[..., DataConfig], *rows: tuple[int, list[float]], **fields: Any) -> dict[str, list[str]]:
    """The cases of a set whose annotations are these, an image's number and a bbox each, from id 1."""

    def edit(d: dict) -> None:
        d["annotations"] = [
            {"id": n + 1, "image_id": 50 - image, "category_id": 3, "bbox": bbox, **fields}
            for n, (image, bbox) in enumerate(rows)
        ]

    return found(settings(folder(edit)))[0]


def ids_of(cases: list[str]) -> list[int]:
    return [int(case.partition("annotation ")[2].split(",")[0]) for case in cases]


def test_boxes_that_cannot_be_seen(folder: Callable[..., DataConfig]) -> None:
    """Images are enlarged to an input of 64 pixels at most a little: sides below 1, or both below a cell of 4."""
    cases = boxes_of(
        folder,
        (5, [10, 10, 12, 12]),
        (2, [10, 10, 0.4, 12]),
        (0, [10, 10, 2, 2.5]),
        (3, [10, 10, 2, 12]),  # thin, and to be seen
        (1, [10, 10, 0.3, 0.3]),
    )
    assert ids_of(cases[check.TINY]) == [5, 2] and ids_of(cases[check.BELOW_CELL]) == [3]
    assert "on the input" in cases[check.TINY][0] and check.FRACTIONS not in cases


def test_boxes_that_are_corners(folder: Callable[..., DataConfig]) -> None:
    """Images 0 and 3 are 60 x 40 and 64 x 57."""
    corners = [(0, [30, 20, 50, 38]), (3, [40, 30, 60, 50]), (3, [2, 2, 20, 20])]
    assert ids_of(boxes_of(folder, *corners)[check.CORNERS]) == [1, 2]
    assert check.CORNERS not in boxes_of(folder, *corners, (0, [30, 20, 10, 30]))  # its corners would be crossed
    assert check.CORNERS not in boxes_of(folder, (0, [10, 10, 20, 20]), (3, [5, 5, 30, 30]))


def test_images_of_several_frames(folder: Callable[..., DataConfig]) -> None:
    images = pathlib.Path(folder().train.images)
    frames = [Image.new("RGB", (60, 40), (90 * n, 0, 0)) for n in range(3)]
    for name in ("0.jpg", "3.jpg"):  # told by the contents
        frames[0].save(
            images / name, "GIF" if name == "0.jpg" else "PNG", save_all=name == "0.jpg", append_images=frames[1:]
        )
    cases = found(settings(folder(lambda d: d["images"][3].update(width=60, height=40))))[0]
    assert [pathlib.Path(case.split(":")[0]).name for case in cases[check.FRAMES]] == ["0.jpg"]


def test_boxes_in_fractions(folder: Callable[..., DataConfig]) -> None:
    cases = boxes_of(folder, (2, [0.1, 0.2, 0.3, 0.4]), (2, [0.8, 0.5, 0.6, 1]), (3, [0, 0, 1, 1]), (3, [4, 4, 20, 20]))
    assert ids_of(cases[check.FRACTIONS]) == [1, 2]  # image 3 has one in pixels too


def test_keypoints_in_fractions(folder: Callable[..., DataConfig]) -> None:
    def edit(d: dict) -> None:
        d["categories"][0]["keypoints"] = ["a", "b"]
        pixels, fractions = [10, 10, 2, 20, 20, 1], [0.1, 0.2, 2, 9, 9, 0]
        for n, annotation in enumerate(d["annotations"]):
            annotation["keypoints"] = fractions if n == 2 else pixels if n else []

    odd = dict(probable_mistakes(open_source(folder(edit), "train", keypoints=True)))
    assert len(odd[POINT_FRACTIONS]) == 1


def test_boxes_annotated_twice_and_files_of_two_ids(folder: Callable[..., DataConfig]) -> None:
    box = [10.0, 10.0, 20.0, 12.0]
    cases = boxes_of(folder, (2, box), (3, box), (2, [10.0, 10.0, 20.0, 12.001]), (2, [11.0, *box[1:]]))
    assert ids_of(cases[check.TWICE]) == [3] and cases[check.TWICE][0].endswith("as annotation 1")
    assert check.TWO_IDS not in cases
    cases, report = found(settings(folder(lambda d: d["images"].append(d["images"][3] | {"id": 99}))))
    assert [case.rpartition("/")[2] for case in cases[check.TWO_IDS]] == ["3.jpg: ids 47, 99"] and report.stop == ""


@pytest.mark.parametrize("bits, told", [(8, True), (10, True), (12, True), (14, True), (15, False), (16, False)])
def test_few_bits_in_files_of_16(folder: Callable[..., DataConfig], bits: int, told: bool) -> None:
    config = settings(folder())
    path = pathlib.Path(config.data.train.images) / "2.jpg"  # its content counts, not its name
    with Image.open(path) as image:
        values = np.random.default_rng(0).integers(0, 1 << bits, (image.height, image.width)).astype(np.uint16)
    values[0, 0] = (1 << bits) - 1
    Image.fromarray(values).save(path, "PNG")
    cases, report = found(config)
    assert (check.DARK in cases) == told and len(cases[check.DEEP]) == 1 and report.stop == ""
    if told:
        assert f"as if it had {'8 or fewer' if bits == 8 else bits} bits" in cases[check.DARK][0]


def test_few_bits_in_colour(folder: Callable[..., DataConfig]) -> None:
    """Pillow reads 16 bits a colour as 8 and calls the mode RGB."""
    import cv2

    config = settings(folder())
    path = pathlib.Path(config.data.train.images) / "3.jpg"
    with Image.open(path) as image:
        values = np.full((image.height, image.width, 3), 4095, np.uint16)
    path.write_bytes(cv2.imencode(".png", values)[1].tobytes())
    cases, _ = found(config)
    assert "as if it had 12 bits" in cases[check.DARK][0] and len(cases[check.DEEP]) == 1
