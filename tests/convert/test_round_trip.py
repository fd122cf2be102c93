"""From a file in a released layout to detections in COCO's format, through the programs themselves, for every model.

`pytest -m slow tests/convert/test_round_trip.py` does it at the released sizes, on images of the folder that
KPJAX_DATA names.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image

import kpjax
from kpjax.__main__ import main as kpjax_main
from kpjax.commands import evaluate as eval_program
from kpjax.commands import flags
from kpjax.data.coco_names import COCO_NAMES
from kpjax.data.kitti_files import read_objects
from kpjax.person import PERSON
from tests.convert import released
from tests.convert import torch_bytes as tb
from tests.golden.cases import DATA
from tests.kitti_folder import write_kitti
from tests.programs import ROOT, environment

CONFIG = """
from kpjax.config import Config

def get_config():
    config = Config(steps=1)
    config.model.name = {model!r}
    config.data.val.images, config.data.val.annotations = {images!r}, {annotations!r}
    return config
"""


def checkpoint_file(path: pathlib.Path, model: str, classes: int, seed: int = 3, **options: Any) -> None:
    """A checkpoint in the layout that the model's authors released it in, of a network that finds something."""
    state = released.arrays(model, classes, seed, **options)
    for key, value in state.items():
        # Peaks everywhere, of the first three classes, which pooling does not smear over whole rows; corners that
        # belong together; boxes with an area.
        if re.search(r"(^|_)(heats?|hm|heatmap_head)\.", key) and value.shape[0] == classes:
            value *= np.float32(1e-3)
            # Alike: corners and centres are of the same classes.  Positive: pooling puts the corners outside.
            value[:3] = abs(value[0])
            value -= np.float32(5) * (np.arange(classes) > 2) if value.ndim == 1 else np.float32(0)
        elif key.endswith("bn2.weight"):
            value *= np.float32(0.2)  # else the sums of an hourglass's hundred residual blocks grow without bound
        elif key.startswith("bbox_head.wh.") and value.shape == (4,):  # TTFNet's sides, in 16 pixels
            value += np.float32(0.5)
        elif re.search(r"_(cnvs|modules)\.\d\.p_conv1|_pool\.\d\.aftpool_conv.conv", key):
            value *= np.float32(0.1)
        elif re.search(r"_(tags|emb|regrs|offs?)\.|^(bbox_head\.)?(wh|reg|offset)", key) and value.shape[0] <= 2:
            value *= np.float32(1e-4)
            value += np.float32(8 if "wh" in key and value.shape == (2,) else 0)
    princeton = model in ("cornernet_hg104", "triplet_hg52", "triplet_hg104", "extremenet_hg104")
    princeton = princeton or model in ("cornernet_squeeze", "cornernet_saccade")
    if princeton:  # a bare dictionary, of a module that was wrapped for several GPUs
        tb.save(path, {f"module.{key}": value for key, value in state.items()}, zipped=False)
        return
    beside = {"epoch": tb.number(140), "optimizer": tb.dictionary({"lr": tb.number(1)})}
    tb.save(path, state, wrapper="state_dict", beside=beside)


def accepted(path: pathlib.Path, annotations: pathlib.Path) -> int:
    """Evaluate a file of detections as COCO's server does, and return how many it holds."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    found = json.loads(path.read_text())
    truth = COCO(str(annotations))
    assert {row["image_id"] for row in found} <= set(truth.getImgIds())
    assert {row["category_id"] for row in found} <= set(truth.getCatIds())
    for row in found:
        assert set(row) - {"keypoints"} == {"image_id", "category_id", "bbox", "score"}
        assert np.isfinite([*row["bbox"], row["score"]]).all() and min(row["bbox"][2:]) >= 0 < row["score"] <= 1
    if found:
        measure = COCOeval(truth, truth.loadRes(str(path)), "bbox")
        measure.evaluate()
        measure.accumulate()
        measure.summarize()
        assert len(measure.stats) == 12
    return len(found)


def eval_arguments(folder: pathlib.Path, model: str, images: pathlib.Path, annotations: pathlib.Path) -> list[str]:
    config = folder / "config.py"
    config.write_text(CONFIG.format(model=model, images=str(images), annotations=str(annotations)))
    stretched = ["--config.eval.resolution=fixed"] if model.startswith("ttfnet") else []
    return ["eval.py", "--config", str(config), "--checkpoint", str(folder / "imported"), "--batch", "2", *stretched]


def test_the_lists_name_every_model() -> None:
    assert sorted(released.SMALL) == kpjax.list_models()


@pytest.fixture(scope="module")
def small_sets(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, tuple[pathlib.Path, pathlib.Path]]:
    """Three images whose scales need two canvases, or one of a corner method (True): folder and annotations."""
    sets, rng = {}, np.random.default_rng(0)
    for hourglass, side in ((False, 31), (True, 84)):
        folder = tmp_path_factory.mktemp("small")
        images, boxes = [], []
        for i in range(3):
            name, width = f"{i}.png", side - i
            Image.fromarray(rng.integers(0, 256, (side, width, 3), dtype=np.uint8)).save(folder / name)
            images.append({"id": 10 + i, "file_name": name, "height": side, "width": width})
            box = {"bbox": [3, 4, 12, 14], "area": 168, "iscrowd": 0, "num_keypoints": 17, "keypoints": [9, 9, 2] * 17}
            boxes.append({"id": 1 + i, "image_id": 10 + i, "category_id": 2 + i, **box})
        classes = enumerate(("cat", "dog", "cow"))
        categories = [{"id": 2 + k, "name": name, "keypoints": list(PERSON.names)} for k, name in classes]
        annotations = folder / "instances.json"
        annotations.write_text(json.dumps({"images": images, "annotations": boxes, "categories": categories}))
        (folder / "names.txt").write_text("cat\ndog\ncow\n")
        sets[hourglass] = folder, annotations
    return sets


TINY_HOURGLASS = {"features": (4, 6), "blocks": (1, 1), "stem": 5, "branch": 3, "head_channels": 7}


# One of each way to merge views; the other models take these ways too, and do it at their released sizes below.
@pytest.mark.parametrize(
    ("model", "preset", "options"),
    [
        ("centernet_r18", "ms", released.SMALL["centernet_r18"]),
        ("centernet_r18_dcn_mmdet", "flip", released.SMALL["centernet_r18_dcn_mmdet"]),
        ("cornernet_hg104", "na", TINY_HOURGLASS),
        ("centernet_r18_pose", "ms", released.SMALL["centernet_r18_pose"]),
        ("ttfnet_r18", "flip", released.SMALL["ttfnet_r18"]),
        pytest.param("triplet_hg52", "ms", TINY_HOURGLASS, marks=pytest.mark.slow),
        pytest.param("cornernet_squeeze", "ms", TINY_HOURGLASS, marks=pytest.mark.slow),
        pytest.param("extremenet_hg104", "ms", released.SMALL["extremenet_hg104"], marks=pytest.mark.slow),
    ],
)
def test_small(
    model: str, preset: str, options: dict[str, Any], small_sets: Any, tmp_path: pathlib.Path, capsys: Any
) -> None:
    images, annotations = small_sets[kpjax.build(model).less > 0]
    checkpoint_file(tmp_path / "released.pth", model, 3, **options)
    arguments = [f"{key}={','.join(map(str, v)) if isinstance(v, tuple) else v}" for key, v in options.items()]
    command = ["convert", str(tmp_path / "released.pth"), "--model", model, "--out", str(tmp_path / "imported")]
    command += ["--names", str(images / "names.txt"), *(word for a in arguments for word in ("--option", a))]
    assert kpjax_main(command) == 0, capsys.readouterr().err
    out = tmp_path / "detections.json"
    argv = [*eval_arguments(tmp_path, model, images, annotations), "--preset", preset, "--out", str(out)]
    assert eval_program.main(flags.parse(argv, eval_program.define)) == 0
    assert accepted(out, annotations) > 0
    assert f"preset {preset}" in capsys.readouterr().out


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], pathlib.Path]:
    """tiny_coco's annotations cut down to its smallest images with objects: (kind, how many) -> the file."""
    folder = tmp_path_factory.mktemp("coco")
    files = {}
    for kind in ("instances", "person_keypoints"):
        whole = DATA / "tiny_coco" / "annotations" / f"{kind}_val2017.json"
        if not whole.is_file():
            pytest.skip(f"no {whole}: set KPJAX_DATA")
        content = json.loads(whole.read_text())
        filled = {a["image_id"] for a in content["annotations"]}
        shown = [image for image in content["images"] if image["id"] in filled]
        by_area = sorted(shown, key=lambda image: (image["height"] * image["width"], -image["width"]))
        for count in (1, 4):
            images = by_area[:count]
            ids = {image["id"] for image in images}
            kept = [a for a in content["annotations"] if a["image_id"] in ids]
            files[kind, count] = folder / f"{kind}_{count}.json"
            files[kind, count].write_text(json.dumps(content | {"images": images, "annotations": kept}))
    return files


CONFIG_3D = """
from kpjax.config import Config

def get_config():
    config = Config(steps=1)
    config.model.name = {model!r}
    config.data.source = "kitti"
    config.data.kitti_dir = {folder!r}
    config.augment.height, config.augment.width = {size!r}
    config.eval.resolution = "fixed"
    return config
"""
_TINY_3D = {"width": 8, "deconv": (8, 8, 8), "head_channels": 8}


@pytest.mark.parametrize(
    ("model", "size", "options"),
    [
        ("centernet_r18_3d", (64, 192), _TINY_3D),
        pytest.param("centernet_dla34_3d", (384, 1280), {}, marks=pytest.mark.slow),
        pytest.param("centernet_r18_3d", (384, 1280), {}, marks=pytest.mark.slow),
    ],
)
def test_3d_boxes(
    model: str, size: tuple[int, int], options: dict[str, Any], tmp_path: pathlib.Path, capsys: Any
) -> None:
    """The classes are named as KITTI's, and KITTI's result files come out."""
    write_kitti(tmp_path / "kitti", frames=4, size=(size[0] - 9, size[1] - 38))
    checkpoint_file(tmp_path / "released.pth", model, 3, **options)
    arguments = [f"{key}={','.join(map(str, v)) if isinstance(v, tuple) else v}" for key, v in options.items()]
    command = ["convert", str(tmp_path / "released.pth"), "--model", model, "--out", str(tmp_path / "imported")]
    assert kpjax_main([*command, *(word for a in arguments for word in ("--option", a))]) == 0, capsys.readouterr().err
    assert "classes   3: Pedestrian, Car, Cyclist" in capsys.readouterr().out
    config = tmp_path / "config.py"
    config.write_text(CONFIG_3D.format(model=model, folder=str(tmp_path / "kitti"), size=size))
    argv = ["eval.py", "--config", str(config), "--checkpoint", str(tmp_path / "imported"), "--batch", "1", "--out"]
    assert eval_program.main(flags.parse([*argv, str(tmp_path / "found.json")], eval_program.define)) == 0
    assert "KITTI's result files" in capsys.readouterr().out
    (result,) = (tmp_path / "found_kitti").iterdir()
    found = read_objects(str(result), results=True)
    assert result.name == "000003.txt" and len(found) == len(json.loads((tmp_path / "found.json").read_text())) > 0
    assert set(found.types) <= {"Pedestrian", "Car", "Cyclist"} and np.isfinite(found.location).all()


@pytest.mark.slow
@pytest.mark.parametrize("model", [name for name in kpjax.list_models() if not name.endswith("_3d")])
def test_released_size(model: str, coco: dict[tuple[str, int], pathlib.Path], tmp_path: pathlib.Path) -> None:
    """As a user does it, in processes of their own.  Hourglasses see one image: a canvas compiles for minutes."""
    pose = model.endswith("_pose")
    annotations = coco["person_keypoints" if pose else "instances", 1 if re.search("hg|squeeze|saccade", model) else 4]
    classes = ("person",) if pose else COCO_NAMES

    def program(*command: str) -> str:
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=ROOT, env=environment())
        assert done.returncode == 0, done.stderr
        return done.stdout

    file, imported = tmp_path / "released.pth", tmp_path / "imported"
    checkpoint_file(file, model, len(classes))
    said = program("-m", "kpjax", "convert", str(file), "--model", model, "--out", str(imported))
    file.unlink()
    assert f"classes   {len(classes)}: {', '.join(classes[:5])}" in said
    info = json.loads((imported / "config.json").read_text())
    assert info["model"] == model and tuple(info["classes"]) == classes
    for preset in kpjax.build(model, 1).protocols:
        out = tmp_path / f"{preset}.json"
        arguments = eval_arguments(tmp_path, model, DATA / "tiny_coco" / "val2017", annotations)
        said = program(*arguments, "--preset", preset, "--out", str(out))
        assert "Average Precision" in said
        count = accepted(out, annotations)
        assert count > 0
        if os.environ.get("KPJAX_ROUND_TRIP_LOG"):
            with open(os.environ["KPJAX_ROUND_TRIP_LOG"], "a", encoding="utf-8") as log:
                print(model, preset, count, "detections;", said.strip().splitlines()[-2], file=log)
