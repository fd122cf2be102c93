"""Evaluation with a detector that reads its boxes from the pixels (tests/fakes.py)."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
import threading
from collections import Counter

import flax.linen as nn
import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from PIL import Image

import kpjax
from kpjax.checkpoint.orbax import CheckpointError
from kpjax.checkpoint.weights import Loaded, save_inference
from kpjax.commands import evaluate as eval_program
from kpjax.commands import flags
from kpjax.config import Config, EvalConfig
from kpjax.errors import ConfigError, DataError, UserError
from kpjax.images.views import keep_view, make_view, share_canvases
from kpjax.inference import evaluate as ev
from kpjax.inference.outputs import class_table, write_detections
from kpjax.metrics.coco import STATS, measure
from kpjax.objects import Detections
from kpjax.parallel.sharding import make_mesh
from kpjax.show.pictures import show
from tests import fakes
from tests.tiny import OPTIONS, random_variables

# three canvases (32x32, 64x32, 64x96), none with a multiple of the batch; one image without objects
ITEMS = [
    (20, 30, [(9, 9, 6, 0)]),
    (50, 20, [(10, 12, 7, 1), (8, 40, 5, 0)]),
    (31, 31, []),
    (40, 70, [(33, 20, 15, 1)]),
    (25, 28, [(14, 12, 9, 1), (3, 3, 2, 0)]),
    (60, 31, [(15, 30, 12, 0)]),
    (24, 24, [(12, 12, 8, 0)]),
]


def config(**changes) -> Config:
    settings = Config()
    settings.eval.batch = 3
    for key, value in changes.items():
        group, name = key.split("__")
        setattr(getattr(settings, group), name, value)
    return settings


def one_device() -> Mesh:
    return Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "fsdp"))


def evaluate(source, **changes) -> ev.Evaluation:
    """On one device, where the batch of three divides no group of images."""
    settings = config(**changes)
    return ev.evaluate(fakes.marker_detector(), fakes.variables(), source, settings, mesh=one_device(), progress=False)


@pytest.mark.parametrize("preset", ["na", "flip"])
def test_perfect_detections_are_perfect(preset):
    result = evaluate(fakes.marker_source(ITEMS), eval__preset=preset)
    assert result.ap == pytest.approx(1.0) and result.ap50 == pytest.approx(1.0)
    assert list(result.stats) == list(STATS)
    assert result.per_class == pytest.approx({"red": 1.0, "green": 1.0})
    assert "Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ] = 1.000" in result.text
    assert len(result.text.splitlines()) == 12
    found = Counter((row["image_id"], row["category_id"], *row["bbox"]) for row in result.detections)
    wanted = Counter(
        (100 + 10 * i, (3, 8)[label], float(x - r), float(y - r), 2.0 * r, 2.0 * r)
        for i, (_, _, objects) in enumerate(ITEMS)
        for x, y, r, label in objects
    )
    assert found == wanted
    assert (result.images, result.skipped) == (len(ITEMS), 0)


def test_plan_covers_every_image_once_one_canvas_a_batch():
    rng = np.random.default_rng(0)
    views = [keep_view(fakes.PLAIN_RGB, (int(h), int(w))) for h, w in rng.integers(1, 150, (101, 2))]
    batches = ev.plan(views, 4)
    indices = np.concatenate([b.indices for b in batches])
    assert sorted(indices[indices >= 0]) == list(range(101))
    assert all(len(b.indices) == 4 for b in batches)
    assert all(views[i].canvas == b.canvas for b in batches for i in b.indices if i >= 0)
    # no more part-filled batches than canvases
    assert sum((b.indices < 0).any() for b in batches) <= len({v.canvas for v in views})


def test_programs_are_compiled_once_for_each_canvas():
    run = ev.make_evaluator(fakes.marker_detector(), config())
    source = fakes.marker_source(ITEMS)
    first = run(fakes.variables(), source, progress=False)
    assert run.engine.infer._cache_size() == 3
    again = run(fakes.variables(), source, progress=False)
    assert run.engine.infer._cache_size() == 3
    assert again.detections == first.detections


def test_only_the_first_images():
    result = evaluate(fakes.marker_source(ITEMS), eval__images=2)
    assert {row["image_id"] for row in result.detections} == {100, 110}
    assert result.ap == pytest.approx(1.0)  # the boxes of the other images are not held against it
    assert result.images == 2


def test_two_classes_of_one_name_are_two(tmp_path):
    """Names are no keys: the table, the plots and the pictures have each of the two."""
    source = dataclasses.replace(fakes.marker_source(ITEMS[:1]), classes=("other", "other"))
    result = evaluate(source)
    assert result.per_class["other (id 3)"] == pytest.approx(1.0) and np.isnan(result.per_class["other (id 8)"])
    assert [line.split()[-1] for line in class_table(result).splitlines()] == ["AP", "1.000", "-"]
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kpjax.show.drawing.draw_objects", lambda image, found, names, *_: drawn.append(names) or image)
        assert show(str(tmp_path), result, source) == 1
    assert drawn == [("other (id 3)", "other (id 8)")]


def test_a_class_without_boxes_has_no_ap():
    result = evaluate(fakes.marker_source([(20, 20, [(9, 9, 5, 0)])]))
    assert result.per_class["red"] == pytest.approx(1.0) and np.isnan(result.per_class["green"])
    assert class_table(result).splitlines() == ["class  AP", "red    1.000", "green  -"]


def test_without_annotations_there_are_boxes_and_no_ap():
    result = evaluate(fakes.marker_source(ITEMS, annotated=False))
    assert len(result.detections) == 8 and result.stats == {} and result.text == "" and result.ap == -1


def test_nothing_found():
    source = fakes.marker_source([(20, 20, [(9, 9, 5, 0)])])
    blank = dataclasses.replace(source, read=lambda i: fakes.png(np.zeros((20, 20, 3), np.uint8)))
    result = evaluate(blank)
    assert result.detections == []
    assert result.ap == 0.0 and result.stats["AR100"] == 0.0


def test_shifted_boxes_lose():
    """The measure is not blind: boxes that are off by a quarter of their side get no AP75."""
    source = fakes.marker_source(ITEMS)
    rows = evaluate(source).detections
    moved = [{**row, "bbox": [row["bbox"][0] + row["bbox"][2] / 4, *row["bbox"][1:]]} for row in rows]
    stats, _, _ = measure(source.ground_truth(), moved, source.image_ids.tolist())
    assert stats["AP50"] == pytest.approx(1.0) and stats["AP75"] == 0.0


def broken(policy_source, index=1, data=b"no image"):
    return dataclasses.replace(policy_source, read=lambda i: data if i == index else policy_source.read(i))


def test_unreadable_image_stops_with_its_name():
    with pytest.raises(DataError, match=r"image1\.png"):
        evaluate(broken(fakes.marker_source(ITEMS)))


def test_unreadable_image_is_skipped_and_counted():
    result = evaluate(broken(fakes.marker_source(ITEMS)), data__bad_images="skip")
    assert result.skipped == 1 and result.images == len(ITEMS)
    assert 110 not in {row["image_id"] for row in result.detections}
    assert result.ap < 1.0


def test_where_no_image_can_be_read_no_ap_is_told():
    gone = dataclasses.replace(fakes.marker_source(ITEMS), read=lambda i: b"")
    with pytest.raises(DataError, match=rf"none of the {len(ITEMS)} images of markers can be read, image0\.png first"):
        evaluate(gone, data__bad_images="skip")


def test_annotated_size_is_authoritative():
    other = fakes.png(fakes.picture(50, 21, []))
    with pytest.raises(DataError, match=r"image1\.png: the file is 21x50 pixels, the annotations say 20x50"):
        evaluate(broken(fakes.marker_source(ITEMS), data=other))


def test_classes_have_to_agree():
    source = fakes.marker_source(ITEMS)
    detector = dataclasses.replace(fakes.marker_detector(), num_classes=80)
    with pytest.raises(ConfigError, match="80 classes and markers lists 2"):
        ev.evaluate(detector, fakes.variables(), source, config(), progress=False)
    with pytest.raises(ConfigError, match="class 1 is 'blue' in the checkpoint and 'green'"):
        ev.check_classes(fakes.marker_detector(), source, ("red", "blue"))
    with pytest.raises(ConfigError, match="'ms'"):
        ev.make_evaluator(fakes.marker_detector(), config(eval__preset="ms"))


def test_lost_and_doubled_images_are_noticed():
    source = fakes.marker_source(ITEMS[:3])
    ev.check_coverage(np.array([1, 1, 1]), source)
    with pytest.raises(RuntimeError, match=r"2 images did not arrive exactly once.* 100, 120"):
        ev.check_coverage(np.array([0, 1, 2]), source)


def test_files_and_pictures(tmp_path):
    source = fakes.marker_source(ITEMS)
    result = evaluate(source)
    write_detections(str(tmp_path / "new" / "detections.json"), result)
    assert json.loads((tmp_path / "new" / "detections.json").read_text()) == result.detections
    assert show(str(tmp_path / "shown"), result, source) == len(ITEMS)
    with Image.open(tmp_path / "shown" / "130.jpg") as picture:
        assert picture.size == (5 * 70, 5 * 40)  # small pictures are enlarged
        assert np.asarray(picture).max() > 100  # a box is drawn on the black image
    assert len(os.listdir(tmp_path / "shown")) == len(ITEMS)


def test_a_full_disk_names_the_file_and_leaves_no_part_of_it(tmp_path, monkeypatch):
    source = fakes.marker_source(ITEMS[:1])
    result = evaluate(source)

    def full(self, path, **_):
        (tmp_path / "half").rename(path)
        raise OSError(28, "No space left on device")

    (tmp_path / "half").write_text("half")
    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(UserError, match=r"100\.jpg: No space left on device"):
        show(str(tmp_path / "shown"), result, source)
    assert not os.listdir(tmp_path / "shown")
    (tmp_path / "found.json.unfinished").mkdir()
    with pytest.raises(UserError, match=r"found\.json: Is a directory"):
        write_detections(str(tmp_path / "found.json"), result)


def test_the_numbers_are_printed_before_a_picture_that_cannot_be_written(run_eval, tmp_path, monkeypatch, capsys):
    def full(self, path, **_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    out, shown = str(tmp_path / "out" / "found.json"), str(tmp_path / "shown")
    assert run_eval("--checkpoint", "x", "--show-dir", shown, "--out", out) == 2
    said = capsys.readouterr()
    assert "Average Precision" in said.out and "No space left on device" in said.err
    assert (tmp_path / "out" / "found.json").is_file()


@pytest.fixture
def run_eval(tmp_path, monkeypatch):
    """eval.py on a data set on disk, with the marker detector for a checkpoint; returns the exit code."""
    source = fakes.marker_source(ITEMS)
    truth = source.ground_truth()
    for i, entry in enumerate(truth["images"]):
        (tmp_path / entry["file_name"]).write_bytes(source.read(i))
    (tmp_path / "val.json").write_text(json.dumps(truth))
    settings = config()
    settings.steps = 1
    settings.data.val.images, settings.data.val.annotations = str(tmp_path), str(tmp_path / "val.json")
    loaded = Loaded(fakes.marker_detector(), fakes.variables(), fakes.CLASSES, settings, 12)
    monkeypatch.setattr("kpjax.checkpoint.weights.load_inference", lambda path, best: loaded)

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["eval.py", *arguments])
        with pytest.raises(SystemExit) as stopped:
            flags.run(eval_program.main, eval_program.define)
        return stopped.value.code

    return run


def test_eval_program(run_eval, tmp_path, capsys):
    out, shown = tmp_path / "out" / "found.json", tmp_path / "shown"
    assert (
        run_eval("--checkpoint", "x", "--per-class", "--out", str(out), "--show-dir", str(shown), "--batch", "2") == 0
    )
    printed = capsys.readouterr().out
    assert "maxDets=100 ] = 1.000" in printed and "green  1.000" in printed
    assert "7 of 7 images" in printed and "step 12" in printed
    assert len(json.loads(out.read_text())) == 8 and len(os.listdir(shown)) == len(ITEMS)


def test_eval_program_writes_beside_the_checkpoint(run_eval, tmp_path):
    assert run_eval("--checkpoint", str(tmp_path / "run" / "model")) == 0
    assert len(json.loads((tmp_path / "run" / "detections.json").read_text())) == 8


def test_where_detections_go_by_default(tmp_path):
    (tmp_path / "run" / "checkpoints" / "20").mkdir(parents=True)
    (tmp_path / "run" / "model").mkdir()
    for path in ("run", "run/model", "run/checkpoints/20"):
        for split, name in (("val", "detections.json"), ("train", "detections_train.json")):
            found = eval_program.default_out(str(tmp_path / path), split)
            assert found == str(tmp_path / "run" / name)


def test_eval_program_does_not_overwrite_the_images(run_eval, tmp_path, capsys):
    truth = json.loads((tmp_path / "val.json").read_text())
    (tmp_path / truth["images"][0]["file_name"]).rename(tmp_path / "100.jpg")
    truth["images"][0]["file_name"] = "100.jpg"
    (tmp_path / "val.json").write_text(json.dumps(truth))
    before = (tmp_path / "100.jpg").read_bytes()
    assert run_eval("--checkpoint", "x", "--out", str(tmp_path / "o.json"), "--show-dir", str(tmp_path)) == 2
    error = capsys.readouterr().err
    assert "100.jpg is one of the inputs" in error and "--show-dir" in error and error.count("\n") == 1
    assert (tmp_path / "100.jpg").read_bytes() == before and not (tmp_path / "o.json").exists()
    (tmp_path / "100.jpg").rename(tmp_path / "first")
    truth["images"][0]["file_name"] = "first"
    (tmp_path / "val.json").write_text(json.dumps(truth))
    files = sorted(tmp_path.iterdir())
    for options, match in (
        (("--out", str(tmp_path / "o.json"), "--show-dir", str(tmp_path)), "holds images of the input"),
        (("--out", str(tmp_path)), "is a folder"),
        (("--out", str(tmp_path / "val.json")), "val.json is one of the inputs"),
    ):
        assert run_eval("--checkpoint", "x", *options) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and match in error and options[-2] in error
    assert sorted(tmp_path.iterdir()) == files


def test_a_fixed_size_that_the_network_cannot_take():
    settings = config(eval__resolution="fixed", augment__height=500)
    with pytest.raises(ConfigError, match=r"config\.augment\.height is 500"):
        ev.make_evaluator(kpjax.build("centernet_r18", num_classes=3), settings)


def test_eval_program_reports_mistakes_in_one_line(run_eval, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    blocked = str(tmp_path / "file" / "found.json")
    for arguments, match in (
        ((), "one of --workdir and --checkpoint"),
        (("--checkpoint", "x", "--best"), "--best"),
        (("--checkpoint", "x", "--out", blocked), "cannot write to"),
        (("--checkpoint", "x", "--split", "train"), "config.data.train.images"),
    ):
        assert run_eval(*arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and match in error, error


@pytest.mark.skipif(jax.device_count() < 8, reason="needs the eight (virtual) devices of tests/conftest.py")
@pytest.mark.parametrize(("fsdp", "preset"), [(1, "na"), (2, "flip")])
def test_eight_devices_agree_and_gather_no_heatmap(fsdp, preset):
    source = fakes.marker_source(ITEMS)
    run = ev.make_evaluator(fakes.marker_detector(), config(eval__preset=preset), make_mesh(fsdp))
    assert run.engine.batch == run.engine.mesh.size > 1
    assert run(fakes.variables(), source, progress=False).detections == evaluate(source, eval__preset=preset).detections
    shapes = (((8, 128, 128, 3), np.uint8), ((8, 4), np.int32), ((8, 2), np.int32))
    batch = [run.engine.shard(np.zeros(shape, kind)) for shape, kind in shapes]
    text = run.engine.infer.lower(fakes.variables(), *batch).compile().as_text()
    gathered = re.findall(r"= (\S+) all-gather\(", text)
    # detections (100 rows of at most 4 numbers) and tags are replicated; a heatmap would be (8, 32, 32, 2)
    sizes = [np.prod([int(n) for n in re.search(r"\[([\d,]*)\]", g)[1].split(",")]) for g in gathered]
    assert sizes and max(sizes) <= 8 * 100 * 4, gathered
    assert not re.search("all-to-all|collective-permute", text)  # the mirror images stay beside the images


def test_eval_program_says_what_it_compiles(run_eval, tmp_path, capsys):
    assert run_eval("--checkpoint", "x", "--out", str(tmp_path / "o.json")) == 0
    said = capsys.readouterr().out
    canvases = len({keep_view(fakes.PLAIN_RGB, item[:2]).canvas for item in ITEMS})
    assert f"programs    {canvases} canvases, a program each" in said and "fast" not in said
    assert said.index("programs") < said.index("Average Precision")


def test_fast_has_few_canvases_and_says_so(run_eval, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(eval_program, "FAST_CANVASES", 1)
    assert run_eval("--checkpoint", "x", "--fast", "--out", str(tmp_path / "o.json")) == 0
    said = capsys.readouterr().out
    assert "canvases    1 canvas instead of 3: 6 of 7 views" in said and "programs    1 canvas, a" in said
    assert "maxDets=100 ] = 1.000" in said, "the marker network does not look at the border"


def test_most_canvases_are_a_setting():
    source = fakes.marker_source(ITEMS)
    run = ev.make_evaluator(fakes.marker_detector(), config(eval__max_canvases=1), one_device())
    assert run(fakes.variables(), source, progress=False).ap == pytest.approx(1.0)
    assert run.engine.infer._cache_size() == 1
    with pytest.raises(ConfigError, match=r"config\.eval\.max_canvases is -1; it must be at least 0"):
        Config(steps=1, eval=EvalConfig(max_canvases=-1)).check()


def test_what_an_evaluation_compiles_is_said_beforehand():
    detector, source = fakes.marker_detector(), fakes.marker_source(ITEMS)
    assert ev.describe_evaluation(detector, config(), source) == "eval     3 canvases, a program each to compile"
    many = fakes.marker_source([(20 + 32 * i, 20, []) for i in range(9)])
    said = ev.describe_evaluation(detector, config(), many)
    assert said.startswith("eval     9 canvases, a program each") and "config.eval.max_canvases=4" in said
    said = ev.describe_evaluation(detector, config(eval__max_canvases=4), many)
    assert said == "eval     4 canvases, a program each to compile"
    both = ev.describe_evaluation(scaled_detector(), config(eval__preset="ms"), source)
    assert both == "eval     3 canvases at 2 scales (3 + 3), a program each to compile"


def test_between_is_called_before_each_batch_and_may_end_it():
    source, calls = fakes.marker_source(ITEMS), []
    run = ev.make_evaluator(fakes.marker_detector(), config(), one_device())
    run(fakes.variables(), source, progress=False, between=lambda: calls.append(1))
    assert len(calls) == len(ev.plan(run.views(source), 3)) == 4

    def stop():
        calls.pop()
        if not calls:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(fakes.variables(), source, progress=False, between=stop)
    assert not [t.name for t in threading.enumerate() if t.name.startswith("kpjax-")]


@pytest.mark.parametrize("fast", [(), ("--fast",)])
def test_eval_program_plans_once(fast, run_eval, tmp_path, monkeypatch):
    made, joined = [], []
    make, join = make_view, share_canvases
    monkeypatch.setattr("kpjax.inference.evaluate.make_view", lambda *a, **k: made.append(a) or make(*a, **k))
    monkeypatch.setattr("kpjax.inference.evaluate.share_canvases", lambda *a: joined.append(a) or join(*a))
    assert run_eval("--checkpoint", "x", *fast, "--out", str(tmp_path / "o.json")) == 0
    assert len(made) == len(ITEMS) and len(joined) == len(fast)


def test_image_info_gives_a_file_for_the_server_and_no_ap(run_eval, tmp_path, capsys):
    truth = json.loads((tmp_path / "val.json").read_text())
    del truth["annotations"]
    (tmp_path / "val.json").write_text(json.dumps(truth))
    assert run_eval("--checkpoint", str(tmp_path / "run" / "model")) == 0
    said = capsys.readouterr().out
    assert "no annotations" in said and "Average Precision" not in said
    assert len(json.loads((tmp_path / "run" / "detections_val_kpjax_results.json").read_text())) == 8
    settings = config()
    settings.data.val.annotations = "coco/annotations/image_info_test-dev2017.json"
    assert eval_program.split_name(settings, "val") == "test-dev2017"


def scaled_detector():
    """The marker detector with a protocol of two scales; nothing is resized, so both see the same objects."""
    from kpjax.detectors.base import Protocol
    from kpjax.ops.merge import merge_scales

    protocols = {
        "na": Protocol(),
        "ms": Protocol(mirror="maps", scales=(1.0, 1.0), merge=merge_scales),
        "boxes": Protocol(mirror="boxes", merge=merge_mirrored_once),
    }
    return dataclasses.replace(fakes.marker_detector(), protocols=protocols)


def merge_mirrored_once(views, top_k):
    from kpjax.ops.merge import merge_mirrored

    return merge_mirrored(views, top_k)


class BrokenNet(fakes.MarkerNet):
    """The marker network with heads that say nothing."""

    broken: tuple[str, ...] = ()

    @nn.compact
    def __call__(self, images, train=False):
        (maps,) = super().__call__(images, train)
        return [{name: 0 * value if name in self.broken else value for name, value in maps.items()}]


@pytest.mark.parametrize("broken", [("heatmap",), ("wh",), ("offset",), ("heatmap", "wh", "offset")])
def test_the_oracle_mends_what_is_broken(broken):
    """Without it the heads cost AP; with the annotations in their place nothing is lost; half of it does not do."""
    source = fakes.marker_source(ITEMS)
    built = kpjax.build("centernet_r18", num_classes=2, **OPTIONS)
    detector = dataclasses.replace(built, net=BrokenNet(broken), preprocess=fakes.PLAIN_RGB)
    ap = {}
    for heads in {(), broken, broken[:1]}:
        run = ev.make_evaluator(detector, config(), one_device(), oracle=heads)
        ap[heads] = run(fakes.variables(), source, progress=False).ap
    assert ap.pop(broken) == pytest.approx(1.0)
    assert max(ap.values()) < 0.8, ap


def test_oracles_that_there_are_not():
    detector = kpjax.build("centernet_r18", num_classes=2, **OPTIONS)
    for heads, preset, match in (
        (("size",), "na", "no head 'size'; choose among heatmap, offset, wh"),
        (("wh",), "flip", "preset 'flip' has more"),
    ):
        with pytest.raises(ConfigError, match=match):
            ev.make_evaluator(detector, config(eval__preset=preset), oracle=heads)
    with pytest.raises(ConfigError, match="no ground truth"):
        ev.make_evaluator(fakes.marker_detector(), config(), oracle=("heatmap",))


def test_table_with_other_numbers_of_detections(run_eval, tmp_path, capsys):
    out = str(tmp_path / "o.json")
    assert run_eval("--checkpoint", "x", "--max-dets", "100,300,1000", "--out", out) == 0
    said = capsys.readouterr().out
    assert "AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ] = 1.000" in said
    assert "AP) @[ IoU=0.50      | area=   all | maxDets=1000 ] = 1.000" in said and "maxDets=300 ] = 1.000" in said
    for text in ("100", "300,100,1000", "1,2,3", "a,b,c"):
        assert run_eval("--checkpoint", "x", "--max-dets", text, "--out", out) == 2
        assert "--max-dets is" in capsys.readouterr().err
    result = ev.make_evaluator(fakes.marker_detector(), config(), max_dets=(2, 100, 200))(
        fakes.variables(), fakes.marker_source(ITEMS), progress=False
    )
    assert list(result.stats) == [*STATS[:6], "AR2", "AR100", "AR200", *STATS[9:]]


@pytest.mark.parametrize("top_k, at", [(100, "300 and 1000"), (300, "1000"), (1000, "")])
def test_a_limit_below_the_table_s_is_said(run_eval, tmp_path, capsys, top_k, at):
    (tmp_path / "c.py").write_text(
        "from kpjax.config import Config\n\n\ndef get_config():\n    c = Config(steps=1)\n    c.model.name = 'marker'\n"
        f"    c.data.val.images, c.data.val.annotations = {str(tmp_path)!r}, {str(tmp_path / 'val.json')!r}\n"
        "    return c\n"
    )
    arguments = ["--checkpoint", "x", "--max-dets", "100,300,1000", "--out", str(tmp_path / "o.json")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eval_program, "settings", lambda given, loaded, path: (loaded.detector, given or loaded.config))
        config_of = ["--config", str(tmp_path / "c.py"), f"--config.eval.top_k={top_k}"]
        assert run_eval(*config_of, *arguments, "--config.eval.score_threshold=0.05") == 0
    said = capsys.readouterr().out
    assert (f"config.eval.top_k = {top_k} keeps" in said and f"recall at {at} is that at {top_k}" in said) == bool(at)
    assert "config.eval.score_threshold = 0.05 leaves out" in said


def test_plots_are_written(run_eval, tmp_path, capsys):
    plots = tmp_path / "plots"
    assert run_eval("--checkpoint", "x", "--plots", str(plots), "--out", str(tmp_path / "o.json")) == 0
    names = sorted(os.listdir(plots))
    assert names == ["confusion_matrix.png", "precision_recall.png", "precision_recall_classes.png"]
    assert all(str(plots / name) in capsys.readouterr().out.replace("\n", " ") for name in names[:1])
    for name in names:
        with Image.open(plots / name) as picture:
            assert picture.format == "PNG" and min(picture.size) > 100


def test_analysis_needs_annotations(run_eval, tmp_path, capsys):
    truth = json.loads((tmp_path / "val.json").read_text())
    del truth["annotations"]
    (tmp_path / "val.json").write_text(json.dumps(truth))
    for flag, value in (("--plots", str(tmp_path / "plots")), ("--oracle", "heatmap")):
        assert run_eval("--checkpoint", "x", flag, value, "--out", str(tmp_path / "o.json")) == 2
        assert f"{flag} compares with annotations" in capsys.readouterr().err


@pytest.mark.parametrize("preset", ["ms", "boxes"])
def test_views_are_merged(preset):
    """Objects seen twice are one object again; Predictor gives what the evaluation gives."""
    source, detector = fakes.marker_source(ITEMS), scaled_detector()
    settings = config(eval__preset=preset)
    result = ev.evaluate(detector, fakes.variables(), source, settings, progress=False)
    assert result.ap == 1.0 and result.images == len(ITEMS)
    kept = [row for row in result.detections if row["score"] > 0.9]
    assert len(kept) == 8
    if preset == "boxes":
        assert len(result.detections) == 8, "NMS leaves one of two equal boxes"
    predictor = kpjax.Predictor(detector, fakes.variables(), preset, batch=2)
    for index, item in enumerate(ITEMS):
        found = predictor(fakes.picture(*item))
        rows = [row for row in result.detections if row["image_id"] == 100 + 10 * index]
        np.testing.assert_allclose([row["score"] for row in rows], found.scores, atol=1e-6)
        boxes = found.boxes - np.concatenate([0 * found.boxes[:, :2], found.boxes[:, :2]], 1)
        np.testing.assert_allclose(np.array([row["bbox"] for row in rows]).reshape(-1, 4), boxes, atol=1e-3)


def test_an_image_mirrored_within_its_canvas():
    """The mirror image lies where the image lay, and boxes come back to where they were."""
    from kpjax.inference.program import mirror_in_window, mirror_within

    rng = np.random.default_rng(0)
    canvases, windows = np.zeros((2, 8, 12, 3), np.float32), np.array([[1, 2, 7, 9], [0, 0, 8, 12]], np.int32)
    for canvas, (top, left, bottom, right) in zip(canvases, windows, strict=True):
        canvas[top:bottom, left:right] = rng.random((bottom - top, right - left, 3))
    turned = np.array(mirror_within(canvases, windows))
    for before, after, (top, left, bottom, right) in zip(canvases, turned, windows, strict=True):
        np.testing.assert_array_equal(after[top:bottom, left:right], before[top:bottom, left:right][:, ::-1])
        after[top:bottom, left:right] = 0
        assert not after.any()
    boxes = np.array([[[3, 2, 5, 6]], [[0, 1, 4, 5]]], np.float32)
    found = Detections(boxes, np.ones((2, 1), np.float32), np.zeros((2, 1), np.int32))
    there = mirror_in_window(found, windows)
    np.testing.assert_array_equal(there.boxes, [[[6, 2, 8, 6]], [[8, 1, 12, 5]]])
    np.testing.assert_array_equal(mirror_in_window(there, windows).boxes, boxes)


def test_options_of_the_file_count_at_test(tmp_path, capsys):
    """eval.py --config takes the model's options from the file, and --nms another soft-NMS; weights have to fit."""
    small = {"features": (4, 6), "blocks": (1, 1), "stem": 5, "stacks": 1, "branch": 3, "head_channels": 7}
    detector = kpjax.build("cornernet_hg104", num_classes=2, **small)
    variables = random_variables(detector.net, 7, 7)
    save_inference(str(tmp_path / "model"), detector, variables, ("cat", "dog"))
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 30, 3), np.uint8)).save(tmp_path / "0.png")
    truth = {
        "images": [{"id": 1, "file_name": "0.png", "height": 30, "width": 30}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [3, 4, 12, 14], "area": 168, "iscrowd": 0}],
        "categories": [{"id": 1 + k, "name": name} for k, name in enumerate(("cat", "dog"))],
    }
    (tmp_path / "val.json").write_text(json.dumps(truth))

    def found(options: dict, *arguments: str) -> tuple[int, str]:
        (tmp_path / "config.py").write_text(
            "from kpjax.config import Config\n\n\ndef get_config():\n    config = Config(steps=1)\n"
            f"    config.model.name, config.model.options = 'cornernet_hg104', {options!r}\n"
            f"    config.data.val.images = {str(tmp_path)!r}\n"
            f"    config.data.val.annotations = {str(tmp_path / 'val.json')!r}\n    return config\n"
        )
        argv = ["eval.py", "--config", str(tmp_path / "config.py"), "--checkpoint", str(tmp_path / "model")]
        out = tmp_path / "found.json"
        assert eval_program.main(flags.parse([*argv, "--out", str(out), *arguments], eval_program.define)) == 0
        return len(json.loads(out.read_text())), capsys.readouterr().out

    close = {"distance": 100.0}  # embeddings of random weights: any two corners are a pair
    many, said = found(close)
    assert many > 4 and "soft-NMS" not in said
    assert found(close | {"corners": 2})[0] <= 4
    assert "soft-NMS none" in found(close, "--nms", "none")[1]
    with pytest.raises(CheckpointError, match="is a checkpoint of another model than cornernet_hg104: "):
        found({"stem": 6})
