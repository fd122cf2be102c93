from __future__ import annotations

import re

import pytest
from PIL import Image

from kpjax.datasets.voc import convert_voc
from kpjax.errors import DataError


def page(objects, width=40, height=30, filename="elsewhere.jpg"):
    """XML of (name, xmin, ymin, xmax, ymax[, difficult]) objects."""
    body = "".join(
        f"<object><name>{o[0]}</name><difficult>{o[5] if len(o) > 5 else 0}</difficult><bndbox><xmin>{o[1]}</xmin>"
        f"<ymin>{o[2]}</ymin><xmax>{o[3]}</xmax><ymax>{o[4]}</ymax></bndbox></object>"
        for o in objects
    )
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation><filename>{filename}</filename>{size}{body}</annotation>"


def add(root, stem, objects, **options):
    (root / "Annotations" / f"{stem}.xml").write_text(page(objects, **options))
    Image.new("RGB", (40, 30)).save(root / "JPEGImages" / f"{stem}.jpg")


@pytest.fixture
def root(tmp_path):
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    add(tmp_path, "b", [("dog", 1, 1, 40, 30), ("cat", 3, 5, 10, 9)])
    add(tmp_path, "a", [("emu", 2, 2, 5, 5)])
    add(tmp_path, "c", [])
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("b\nc\n\n")
    return tmp_path


def boxes(converted):
    return [a["bbox"] for a in converted.instances["annotations"]]


def test_pixels_from_one_last_included(root):
    converted = convert_voc(str(root), "ImageSets/Main/train.txt")
    assert boxes(converted) == [[0, 0, 40, 30], [2, 4, 8, 5]]
    data = converted.instances
    assert [(i["id"], i["file_name"], i["width"], i["height"]) for i in data["images"]] == [
        (1, "b.jpg", 40, 30),
        (2, "c.jpg", 40, 30),
    ]
    assert [a["area"] for a in data["annotations"]] == [1200, 40]
    assert converted.images == str(root / "JPEGImages") and converted.notes == ()


def test_every_split_has_the_classes_of_the_whole_root(root):
    expected = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}, {"id": 3, "name": "emu"}]
    assert convert_voc(str(root)).instances["categories"] == expected
    some = convert_voc(str(root), str(root / "ImageSets/Main/train.txt"))
    assert some.instances["categories"] == expected
    assert [a["category_id"] for a in some.instances["annotations"]] == [2, 1]
    with pytest.raises(DataError, match="'emu' is named twice"):
        convert_voc(str(root), classes=["emu", "dog", "emu"])
    given = convert_voc(str(root), classes=["emu", "dog"])
    assert [c["name"] for c in given.instances["categories"]] == ["emu", "dog"]
    assert any("'cat' dropped" in note and note.startswith("1 x") for note in given.notes)


def test_odd_boxes_are_reported(root):
    add(root, "d", [("cat", 7, 7, 7, 7), ("cat", 9, 9, 4, 12), ("cat", 41, 3, 50, 8), ("cat", 30, 20, 45, 31)])
    (root / "ImageSets" / "Main" / "one.txt").write_text("d")
    converted = convert_voc(str(root), "ImageSets/Main/one.txt")
    assert boxes(converted) == [[6, 6, 1, 1], [29, 19, 11, 11]]
    text = "\n".join(converted.notes)
    assert "box kept in d.xml (cat 7,7,7,7): a single pixel" in text
    assert "box dropped in d.xml (cat 9,9,4,12): its corners are the wrong way round" in text
    assert "outside the image of 40 x 30" in text and "1 x boxes clipped" in text
    plain = convert_voc(str(root), "ImageSets/Main/one.txt", zero_based=True)
    assert boxes(plain) == [[30, 20, 10, 10]]
    assert any("it has no area" in note for note in plain.notes)


@pytest.mark.parametrize(("choice", "crowds"), [("keep", [0, 0]), ("ignore", [1, 0]), ("drop", [0])])
def test_difficult_objects(root, choice, crowds):
    add(root, "d", [("cat", 1, 1, 5, 5, 1), ("cat", 2, 2, 6, 6, 0)])
    (root / "ImageSets" / "Main" / "one.txt").write_text("d")
    converted = convert_voc(str(root), "ImageSets/Main/one.txt", difficult=choice)
    assert [a["iscrowd"] for a in converted.instances["annotations"]] == crowds
    assert converted.notes == (f"1 x difficult objects: {choice}",)


def test_bad_input_is_one_line(root):
    def fails(pattern, *args, **options):
        with pytest.raises(DataError, match=pattern) as bad:
            convert_voc(*args, **options)
        assert "\n" not in str(bad.value)

    fails("Annotations: no such folder", str(root / "ImageSets"))
    fails(r"none\.txt", str(root), "none.txt")
    (root / "twice.txt").write_text("a\na\n")
    fails("lists a twice", str(root), "twice.txt")
    (root / "unknown.txt").write_text("zebra\n")
    fails(r"zebra\.xml: cannot be read", str(root), "unknown.txt")
    (root / "Annotations" / "a.xml").write_text("<annotation>")
    fails(r"a\.xml: not an XML file", str(root))
    (root / "Annotations" / "a.xml").write_text(page([("emu", 1, 1, "x", 5)]))
    fails(r"a\.xml: <bndbox/xmax> is 'x'", str(root))
    (root / "Annotations" / "a.xml").write_text(page([("emu", 1, 1, 5, 5)], width=-4))
    fails(r"a\.xml: the size is -4 x 30", str(root))
    (root / "Annotations" / "a.xml").write_text(page([("emu", 1, 1, 5, 5)]))
    (root / "JPEGImages" / "a.jpg").unlink()
    fails(r"a\.jpg: image not found", str(root))


@pytest.mark.parametrize("size", ["<size><width>0</width><height>0</height></size>", "", "<size><width/></size>"])
def test_a_size_that_is_missing_is_the_images(root, size):
    text = page([("emu", 2, 2, 50, 5)])
    (root / "Annotations" / "a.xml").write_text(re.sub("<size>.*</size>", size, text))
    (root / "ImageSets" / "Main" / "one.txt").write_text("a")
    converted = convert_voc(str(root), "ImageSets/Main/one.txt")
    image = converted.instances["images"][0]
    assert (image["width"], image["height"]) == (40, 30) and boxes(converted) == [[1, 1, 39, 4]]
    assert "1 x sizes of images that their XML lacks: read from the image files" in converted.notes


def test_folders_of_other_names(root):
    (root / "Annotations").rename(root / "xml")
    (root / "JPEGImages").rename(root / "images")
    converted = convert_voc(str(root), folders=("xml", "images"))
    assert len(converted.instances["images"]) == 3 and converted.images == str(root / "images")
