from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from kpjax.__main__ import main
from kpjax.commands.front import COMMANDS
from kpjax.data.coco import CocoFolder


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (40, 20)).save(tmp_path / "images" / "one.jpg")
    (tmp_path / "labels" / "one.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "classes.txt").write_text("cat\n")
    return tmp_path


def test_what_it_writes_opens_as_a_source(yolo, capsys):
    out = yolo / "new" / "train.json"
    assert main(["yolo", "--root", str(yolo), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "1 images (0 without objects), 1 boxes" in printed and f"images={yolo / 'images'}" in printed
    source = CocoFolder(str(yolo / "images"), str(out))
    assert source.classes == ("cat",) and source.objects[0].boxes.tolist() == [[10, 5, 30, 15]]
    assert [p.name for p in out.parent.iterdir()] == ["train.json"]


def test_a_user_mistake_is_one_line_and_keeps_the_old_file(yolo, capsys):
    out = yolo / "train.json"
    out.write_text("precious")
    (yolo / "labels" / "one.txt").write_text("7 0.5 0.5 0.5 0.5\n")
    assert main(["yolo", "--root", str(yolo), "--out", str(out)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1 and "one.txt:1" in captured.err
    assert out.read_text() == "precious"


def test_a_full_disk_is_named_though_its_error_is_not(yolo, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(json, "dump", full)
    assert main(["yolo", "--root", str(yolo), "--out", str(yolo / "train.json")]) == 2
    assert capsys.readouterr().err == f"error: {yolo / 'train.json'}: No space left on device\n"


def test_voc_options_reach_the_converter(tmp_path, capsys):
    for folder in ("Annotations", "JPEGImages"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "JPEGImages" / "a.jpg")
    (tmp_path / "Annotations" / "a.xml").write_text(
        "<a><size><width>9</width><height>9</height></size><object><name>cat</name><difficult>1</difficult><bndbox>"
        "<xmin>2</xmin><ymin>2</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></object></a>"
    )
    out = tmp_path / "o.json"
    options = [
        "--root",
        str(tmp_path),
        "--out",
        str(out),
        "--classes",
        "dog, cat",
        "--zero-based",
        "--difficult",
        "ignore",
    ]
    assert main(["voc", *options]) == 0
    data = json.loads(out.read_text())
    assert [c["name"] for c in data["categories"]] == ["dog", "cat"]
    assert data["annotations"][0]["bbox"] == [2, 2, 3, 3] and data["annotations"][0]["iscrowd"] == 1
    assert "difficult objects: ignore" in capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    printed = capsys.readouterr().out
    option = {"download": "--dir", "plan": "--topology", "train": "--workdir", "recipes": "NAME"}.get(name, "--out")
    assert end.value.code == 0 and option in printed and printed.startswith(f"usage: kpjax {name}")
    assert re.findall(r"^  kpjax ([\w-]+) ?", printed.split("\nexamples:\n")[1], re.MULTILINE) == [name, name]


def test_as_a_module():
    done = subprocess.run([sys.executable, "-m", "kpjax", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and all(name in done.stdout for name in COMMANDS)
    assert [done.stdout.index(f"\n{title}:\n") for title in ("train and use", "data", "models")]
    wrong = subprocess.run([sys.executable, "-m", "kpjax", "fly"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "Traceback" not in wrong.stderr
