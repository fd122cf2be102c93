from __future__ import annotations

import pytest
from PIL import Image

from kpjax.datasets.yolo import convert_yolo, convert_yolo_folders
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


BOX, KEYPOINTS, SEEN = "0 0.5 0.5 0.5 0.5", " 0.3 0.3 0.7 0.3 0.7 0.7 0.3 0.7", " 0.4 0.4 2 0.6 0.6 1"
OUTLINE = "0 0.3 0.3 0.9 0.3 0.9 0.6"  # as a box it would end outside the image


def boxes_of(layout, text, declared="", names="[a, b]"):
    root, split, _, labels = layout
    (labels / "one.txt").write_text(text)
    (labels / "deep" / "two.txt").unlink(missing_ok=True)
    (root / "data.yaml").write_text(f"names: {names}\n{declared}\n")
    converted = convert_yolo(str(root), split)
    return [a["bbox"] for a in converted.instances["annotations"]], converted.notes


@pytest.mark.parametrize(
    ("text", "declared"),
    [
        (BOX + KEYPOINTS, "kpt_shape: [4, 2]"),
        (BOX + SEEN, "kpt_shape: [2, 3]"),
        (BOX + " 0.4 0.4 0", "kpt_shape: [1, 3]"),
        (BOX + KEYPOINTS, "task: pose"),
        (BOX + SEEN, ""),  # no outline has a coordinate of 2
        (BOX + " 0.4 0.4 1", ""),  # nor an odd number of them
    ],
)
def test_the_box_of_a_line_with_keypoints_is_its_own(layout, text, declared):
    boxes, notes = boxes_of(layout, f"{text}\n{BOX}\n", declared)
    assert boxes == [[10, 5, 20, 10], [10, 5, 20, 10]]
    assert "1 x boxes with keypoints, which are left out" in notes


def test_outlines_without_a_declaration(layout):
    """Two lengths, or one line that is no box of the image, are outlines; else the file has to say."""
    square = "0 0.4 0.4 0.6 0.4 0.6 0.6 0.4 0.6"
    for text, declared in (
        (OUTLINE, ""),
        (f"{square}\n{OUTLINE}", ""),
        (square, "task: segment"),
        (square, "task: obb"),
    ):
        boxes, notes = boxes_of(layout, text, declared)
        assert boxes[0] == pytest.approx([16, 8, 8, 4] if text[:20] == square[:20] else [12, 6, 24, 6])
        assert any("outlines" in note for note in notes)
    with pytest.raises(
        DataError, match=r"one\.txt:1 is .* an outline or a box with keypoints; .*data\.yaml: `task: seg"
    ):
        boxes_of(layout, square)
    with pytest.raises(DataError, match=r"one\.txt:1 is .* an outline or a box with keypoints"):
        boxes_of(layout, BOX + KEYPOINTS)


@pytest.mark.parametrize(
    ("text", "declared", "pattern"),
    [
        (BOX, "kpt_shape: 17", "kpt_shape is 17"),
        (BOX, "kpt_shape: [17, 4]", "kpt_shape is"),
        (BOX, "task: classify", "task is 'classify'"),
        (BOX, "task: obb\nkpt_shape: [17, 3]", "remove one"),
        (BOX + " 0.9", "", r"one\.txt:1 is"),  # a score
        (BOX + " 0.1 0.2 0.3 0.4 0.5", "kpt_shape: [2, 3]", r"one\.txt:1 is"),
        (BOX + " 0.4 0.4 2", "task: segment", r"one\.txt:1 is"),
        ("0 10 10 20 10 20 20", "", r"one\.txt:1.*fractions"),
        (f"{BOX}{SEEN}\n{OUTLINE}", "", r"one\.txt:2 is"),
    ],
)
def test_what_fits_no_format_is_refused(layout, text, declared, pattern):
    with pytest.raises(DataError, match=pattern) as caught:
        boxes_of(layout, text, declared)
    assert "\n" not in str(caught.value)


def test_names_and_labels_as_windows_and_yaml_write_them(layout):
    root, split, _, labels = layout
    (labels / "one.txt").write_bytes("\ufeff1 0.5 0.5 0.5 0.5\r\n0 0.5 0.5 0.5 0.5\r\n".encode())
    (root / "mine.txt").write_bytes("\ufeff\"traffic light\"\r\n'dog'\r\n".encode())
    data = convert_yolo(str(root), split, names=str(root / "mine.txt")).instances
    assert [c["name"] for c in data["categories"]] == ["traffic light", "dog"]
    assert [a["category_id"] for a in data["annotations"]] == [1, 2, 1]
    (root / "data.yaml").write_bytes("\ufeffnames:\r\n  0: no\r\n  1: 'on'\r\n  2: 1.0\r\n  3: null\r\n".encode())
    names = [c["name"] for c in convert_yolo(str(root), split).instances["categories"]]
    assert names == ["no", "on", "1.0", "null"]
    (root / "data.yaml").write_text("names: [cat, ]\n".replace(", ]", ", '']"))
    with pytest.raises(DataError, match="class 1 has no name"):
        convert_yolo(str(root), split)


@pytest.mark.parametrize(
    ("exif", "size", "box"), [("apply", (20, 40), [5, 4, 10, 8]), ("ignore", (40, 20), [10, 2, 20, 4])]
)
def test_labels_are_of_the_image_as_it_is_shown_or_stored(tmp_path, exif, size, box):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    orientation = Image.Exif()
    orientation[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "images" / "a.jpg", exif=orientation)
    (tmp_path / "labels" / "a.txt").write_text("0 0.5 0.2 0.5 0.2\n")
    (tmp_path / "classes.txt").write_text("cat\n")
    converted = convert_yolo(str(tmp_path), exif=exif)
    (image,), (annotation,) = converted.instances["images"], converted.instances["annotations"]
    assert (image["width"], image["height"]) == size and annotation["bbox"] == pytest.approx(box)
    assert any("1 x images with an EXIF rotation" in n and f"config.data.exif='{exif}'" in n for n in converted.notes)


def test_what_the_yaml_says_against_the_files_is_refused(layout):
    root, split, images, labels = layout
    for count in ("3", "1"):
        (root / "data.yaml").write_text(f"nc: {count}\nnames: [cat, dog]\n")
        with pytest.raises(DataError, match=rf"nc is {count}, and 'names' has 2 classes"):
            convert_yolo(str(root), split)
    (root / "data.yaml").write_text("nc: 2\nnames: [cat, dog]\nkpt_shape: [3, 3]\n")
    (labels / "one.txt").write_text(BOX + SEEN)
    (labels / "deep" / "two.txt").write_text(BOX)
    # Boxes are read all the same; keypoints of another number are not.
    converted = convert_yolo(str(root), split)
    assert any("1 x lines of other than the 14 numbers that kpt_shape says" in note for note in converted.notes)
    with pytest.raises(DataError, match=r"one\.txt:1 is .*, 11 numbers; kpt_shape of the YAML says 14"):
        convert_yolo_folders(str(root), str(images), str(labels), keypoints=True)


def test_labels_of_no_image_are_counted(layout):
    root, split, images, labels = layout
    (labels / "photo.txt").write_text(BOX)
    (images / "photo.heic").write_bytes(b"of a phone")
    (labels / "classes.txt").write_text("cat")
    notes = convert_yolo(str(root), split).notes
    assert any(note == "1 x label files without an image that can be read, e.g. photo.txt: left out" for note in notes)
