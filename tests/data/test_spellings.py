"""Images whose names a list spells otherwise than the disk: read where one file alone can be meant, else suggested."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from kpjax.config import Config, DataConfig, SplitConfig
from kpjax.data.coco import CocoFolder
from kpjax.data.source import Source
from kpjax.data.spellings import Spellings
from kpjax.datasets import check
from kpjax.datasets.voc import convert_voc
from kpjax.datasets.yolo import convert_yolo
from kpjax.errors import DataError
from tests.datasets.test_check import found

COMPOSED = unicodedata.normalize("NFC", "Caf\u00e9 \u00dcber.jpg")
APART = unicodedata.normalize("NFD", COMPOSED)


def split_of(folder: Path, on_disk: Sequence[str], listed: Sequence[str]) -> SplitConfig:
    """A folder of images of these names, and a JSON that lists others."""
    for name in on_disk:
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30)).save(path, "JPEG")
    images = [{"id": n + 1, "file_name": name, "width": 40, "height": 30} for n, name in enumerate(listed)]
    boxes = [{"id": n + 1, "image_id": n + 1, "category_id": 1, "bbox": [3, 3, 20, 20]} for n in range(len(images))]
    categories = [{"id": 1, "name": "x"}]
    (folder / "a.json").write_text(json.dumps({"images": images, "annotations": boxes, "categories": categories}))
    return SplitConfig(str(folder / "images"), str(folder / "a.json"))


def opened(folder: Path, on_disk: Sequence[str], listed: Sequence[str], bad_images: str = "stop") -> Source:
    split = split_of(folder, on_disk, listed)
    return CocoFolder(split.images, split.annotations, bad_images)


@pytest.mark.parametrize(
    ("on_disk", "listed"),
    [
        ("sub/a.jpg", "sub\\a.jpg"),
        ("sub\\a.jpg", "sub/a.jpg"),  # a ZIP of Windows, unpacked elsewhere
        (COMPOSED, APART),
        (APART, COMPOSED),
        ("a b.jpg", "a%20b.jpg"),
        ("a%20b.jpg", "a b.jpg"),
        ("sub/a.JPG", "Sub/A.jpg"),
        ("a.jpg", "a.jpg "),
        (" a.jpg", "a.jpg"),
        (f"Sub dir/{APART}", f"sub%20dir\\{COMPOSED.upper()} "),
    ],
)
def test_one_file_alone_can_be_meant(tmp_path: Path, on_disk: str, listed: str) -> None:
    for bad_images in ("stop", "skip"):
        source = opened(tmp_path, [on_disk, "other.jpg"], [listed, "other.jpg"], bad_images)
        assert source.files[0] == str(tmp_path / "images" / on_disk)
        assert source.read(0) == (tmp_path / "images" / on_disk).read_bytes()
    split = SplitConfig(str(tmp_path / "images"), str(tmp_path / "a.json"))
    cases, report = found(Config(steps=1, data=DataConfig(train=split, val=split)))
    assert len(cases[check.OTHERWISE]) == 1 and on_disk in cases[check.OTHERWISE][0] and report.stop == ""
    assert check.UNLISTED not in cases


@pytest.mark.parametrize(
    ("on_disk", "listed", "suggested"),
    [
        (["a.jpg", "A.jpg"], ["A.JPG"], "did you mean A.jpg or a.jpg?"),  # two fit
        (["a.jpg"], ["a.jpg", "A.jpg"], ""),  # the file is another entry's
        (["a.jpg"], ["A.jpg", "A.JPG"], "did you mean a.jpg?"),  # two entries mean it
        (["a.png"], ["a.jpg"], "did you mean a.png?"),
        (["a.jpg"], ["images/a.jpg"], "did you mean a.jpg?"),  # the folder stands in the list too
        (["sub/street_corner.jpg"], ["sub/street_corners.jpg"], "did you mean sub/street_corner.jpg?"),
        (["frame_000123.jpg"], ["frame_000124.jpg"], ""),  # another number is another image
    ],
)
def test_what_is_not_certain_is_suggested(
    tmp_path: Path, on_disk: list[str], listed: list[str], suggested: str
) -> None:
    with pytest.raises(DataError, match="image not found") as caught:
        opened(tmp_path, on_disk, listed)
    said = str(caught.value)
    assert "\n" not in said and (suggested in said if suggested else "did you mean" not in said)


def test_no_name_leads_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match="image not found"):
        opened(tmp_path, ["a.jpg"], ["%2e%2e/secret.jpg"])
    assert Spellings(str(tmp_path / "images")).fitting("../secret.jpg") == []


def test_voc_and_yolo_find_files_of_other_spellings(tmp_path: Path) -> None:
    for folder in ("Annotations", "JPEGImages", "images", "labels"):
        (tmp_path / folder).mkdir()
    stem, apart = COMPOSED[:-4], APART[:-4]
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    size = "<size><width>40</width><height>30</height></size>"
    (tmp_path / "Annotations" / f"{stem}.xml").write_text(f"<a>{size}<object><name>x</name>{box}</object></a>")
    for folder in ("JPEGImages", "images"):
        Image.new("RGB", (40, 30)).save(tmp_path / folder / f"{apart}.Jpg", "JPEG")
    (tmp_path / "labels" / f"{stem}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "classes.txt").write_text("x\n")
    (tmp_path / "list.txt").write_text(f"{apart.replace(' ', '%20')}\n")
    voc, yolo = convert_voc(str(tmp_path), "list.txt"), convert_yolo(str(tmp_path))
    for converted in (voc, yolo):
        assert [i["file_name"] for i in converted.instances["images"]] == [f"{apart}.Jpg"]
        assert len(converted.instances["annotations"]) == 1
    assert yolo.notes == ("1 x label files whose names are spelt otherwise than their images'",)
    (tmp_path / "JPEGImages" / f"{apart}.Jpg").rename(tmp_path / "JPEGImages" / "b.jpg")
    with pytest.raises(DataError, match="image not found"):
        convert_voc(str(tmp_path))
