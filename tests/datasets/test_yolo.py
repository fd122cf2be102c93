from __future__ import annotations

import pytest
from PIL import Image

from kpjax.datasets.yolo import convert_yolo
from kpjax.errors import DataError


@pytest.fixture(params=["images/train labels/train", "train/images train/labels", "images labels"])
def layout(request, tmp_path):
    images, labels = (tmp_path / part for part in request.param.split())
    (images / "deep").mkdir(parents=True)
    (labels / "deep").mkdir(parents=True)
    Image.new("RGB", (40, 20)).save(images / "one.jpg")
    Image.new("RGB", (20, 40)).save(images / "deep" / "two.PNG")
    Image.new("RGB", (10, 10)).save(images / "three.jpg")
    (labels / "one.txt").write_text("1 0.5 0.5 0.5 0.5\n\n0 0.1 0.5 0.4 0.2\n")
    (labels / "deep" / "two.txt").write_text("0 0.1 0.2 0.3 0.2 0.3 0.6\n")
    (tmp_path / "data.yaml").write_text("path: x\nnames:\n  0: cat\n  1: dog\n")
    return tmp_path, None if request.param == "images labels" else "train", images, labels


def test_layouts_boxes_and_notes(layout):
    root, split, images, _ = layout
    converted = convert_yolo(str(root), split)
    assert converted.images == str(images)
    data = converted.instances
    assert [(i["file_name"], i["width"], i["height"]) for i in data["images"]] == [
        ("deep/two.PNG", 20, 40),
        ("one.jpg", 40, 20),
        ("three.jpg", 10, 10),
    ]
    assert [c["name"] for c in data["categories"]] == ["cat", "dog"]
    expected = [(1, 1, [2, 8, 4, 16]), (2, 2, [10, 5, 20, 10]), (2, 1, [0, 8, 12, 4])]
    for annotation, (image_id, category_id, box) in zip(data["annotations"], expected, strict=True):
        assert (annotation["image_id"], annotation["category_id"]) == (image_id, category_id)
        assert annotation["bbox"] == pytest.approx(box)
    text = "\n".join(converted.notes)
    assert "1 x images without a label file" in text and "1 x outlines" in text and "1 x boxes clipped" in text


@pytest.mark.parametrize(
    ("line", "pattern"),
    [
        ("2 0.5 0.5 0.1 0.1", r"one\.txt:1 has the class 2; the names give 0 to 1"),
        ("0.5 0.5 0.5 0.1 0.1", r"one\.txt:1 has the class 0\.5"),
        ("0 0.5 0.5 0.1", r"one\.txt:1 is '0 0\.5"),
        ("0 0.5 nan 0.1 0.1", r"one\.txt:1"),
        ("cat 0.5 0.5 0.1 0.1", r"one\.txt:1 is 'cat"),
        ("0 320 240 50 50", r"one\.txt:1.*fractions"),
    ],
)
def test_bad_lines_are_named(layout, line, pattern):
    root, split, _, labels = layout
    (labels / "one.txt").write_text(line)
    with pytest.raises(DataError, match=pattern):
        convert_yolo(str(root), split)


def test_names_and_folders(layout):
    root, split, images, _ = layout
    (root / "data.yaml").write_text("names: [a, b, c]")
    assert [c["name"] for c in convert_yolo(str(root), split).instances["categories"]] == ["a", "b", "c"]
    (root / "mine.txt").write_text("x\n\ny\n")
    converted = convert_yolo(str(root), split, names=str(root / "mine.txt"))
    assert [c["name"] for c in converted.instances["categories"]] == ["x", "y"]
    (root / "data.yaml").write_text("names: [cat, dog, cat]")
    assert "2 x classes named 'cat', each kept as a class of its own" in convert_yolo(str(root), split).notes
    for text, pattern in (("names: {1: a}", "number the classes"), ("{", "not a YAML"), ("nc: 3", "no list of class")):
        (root / "data.yaml").write_text(text)
        with pytest.raises(DataError, match=pattern):
            convert_yolo(str(root), split)
    (root / "data.yaml").unlink()
    with pytest.raises(DataError, match="no file of class names"):
        convert_yolo(str(root), split)
    with pytest.raises(DataError, match="no folders images/nope"):
        convert_yolo(str(root), "nope")
    (images / "bad.jpg").write_text("no")
    with pytest.raises(DataError, match=r"bad\.jpg"):
        convert_yolo(str(root), split, names=str(root / "mine.txt"))
