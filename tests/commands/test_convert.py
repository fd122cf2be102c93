"""`python -m kpjax convert`: from files in the released layouts to a checkpoint that detects."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import kpjax
from kpjax.__main__ import main
from kpjax.checkpoint.weights import load_inference
from kpjax.commands.convert import _options
from kpjax.convert import class_axes, count_classes, resembles
from tests.convert import released
from tests.convert import torch_bytes as tb
from tests.convert.test_rules import SMALL, checkpoint

OPTIONS = ["--option", "width=8", "--option", "deconv=8,8,8", "--option", "head_channels=8"]


def convert(file: pathlib.Path, model: str, out: pathlib.Path, *more: str) -> int:
    return main(["convert", str(file), "--model", model, "--out", str(out), *OPTIONS, *more])


def one_error(capsys: Any) -> str:
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.count("\n") == 1 and len(text) < 700
    return text


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("model", ["centernet_r18", "centernet_r18_mmdet"])
def test_a_released_layout_becomes_a_checkpoint(model: str, zipped: bool, tmp_path: pathlib.Path, capsys: Any) -> None:
    state = {f"module.{key}": value for key, value in checkpoint(model, classes=3).items()}
    file, names = tmp_path / "model.pth.tar", tmp_path / "names.txt"
    tb.save(file, state, zipped=zipped, wrapper="state_dict", beside={"epoch": tb.number(140), "optimizer": b"}"})
    names.write_text("cat\ndog\ncow\n")
    assert convert(file, model, tmp_path / "out", "--names", str(names)) == 0
    said = capsys.readouterr().out
    assert "left out  epoch, optimizer" in said and "3: cat, dog, cow" in said
    assert "num_batches_tracked (x 2" in said and "heads/heatmap_out" in said
    info = json.loads((tmp_path / "out" / "config.json").read_text())
    assert info["model"] == model and info["classes"] == ["cat", "dog", "cow"]
    assert info["input"]["layout"] == "NHWC" and len(info["input"]["mean"]) == len(info["input"]["std"]) == 3
    loaded = load_inference(str(tmp_path / "out"))
    wanted = kpjax.import_torch(kpjax.build(model, 3, **SMALL), checkpoint(model, classes=3))
    for kind in ("params", "batch_stats"):
        for ours, theirs in zip(leaves(loaded.variables[kind]), leaves(wanted[kind]), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    found = kpjax.load(str(tmp_path / "out"))(np.zeros((40, 50, 3), np.uint8))
    assert found.names == ("cat", "dog", "cow")


def leaves(tree: Any) -> list[Any]:
    import jax

    return jax.tree.leaves(tree)


def test_a_wrong_file_says_what_it_looks_like(tmp_path: pathlib.Path, capsys: Any) -> None:
    file = tmp_path / "model.pth"
    tb.save(file, checkpoint("centernet_r18_mmdet", classes=3))
    builders = {
        name: lambda k, name=name: kpjax.build(name, k, **SMALL)
        for name in kpjax.list_models()
        if name.startswith("centernet_r18")
    }
    for model in ("centernet_r18", "centernet_r18_mmdet"):
        name, share = resembles(checkpoint(model), builders)
        assert name == model and share == 1.0
    assert convert(file, "centernet_r18", tmp_path / "out") == 2
    assert str(file) in (text := one_error(capsys)) and "does not fit centernet_r18" in text
    assert text.endswith("; it looks like centernet_r18_mmdet: try --model centernet_r18_mmdet\n")
    assert not (tmp_path / "out").exists()


def test_a_file_of_another_model_or_of_none(tmp_path: pathlib.Path, capsys: Any) -> None:
    """The names decide which model is the nearest, and "none" is said where none knows a good part of them."""
    rng, file = np.random.default_rng(0), tmp_path / "weights"
    trunk = {key: rng.random(shape, np.float32) for key, shape in released.trunk((2, 2, 2, 2), False, 8)}
    foreign = {f"features.{i}.weight": np.zeros((64, 3, 3, 3), np.float32) for i in range(20)}
    wider = released.arrays("centernet_r18_mmdet", 3, width=16, deconv=(8, 8, 8), head_channels=8)
    retina = {f"backbone.{key}": value for key, value in trunk.items()} | {
        f"neck.{key}": value for key, value in trunk.items()
    }
    for state, said in (
        (
            wider,
            "are those of centernet_r18_mmdet, its sizes are other ones: try --model centernet_r18_mmdet with --opt",
        ),
        (
            released.arrays("centernet_r18", 3, width=16),
            "its sizes are other ones: give them as --option; it holds conv1",
        ),
        (
            {f"body.{key}": value for key, value in trunk.items()} | foreign,
            "know a backbone alone in it, as of an ImageNet classifier: --config.init_from",
        ),
        (
            retina,
            "the nearest is centernet_r18_mmdet, which has 120 of its 240 names and misses 42; it holds backbone.conv1",
        ),
        (foreign, "none of the models here, which have none of its names; it holds features.0.weight (64, 3, 3, 3), "),
        (
            {"conv1.weight": trunk["conv1.weight"]} | foreign,
            "none of the models here, the nearest is centernet_r18, which",
        ),
    ):
        tb.save(file, state)
        assert convert(file, "centernet_r18", tmp_path / "out") == 2
        assert said in (text := one_error(capsys)), text
        assert ("none of the models" in text) == ("none of the models" in said)


def test_which_set_of_weights_was_taken(tmp_path: pathlib.Path, capsys: Any) -> None:
    file, state = tmp_path / "epoch_1", checkpoint("centernet_r18_mmdet")
    arrays, half = list(state.values()), [value * np.asarray(0.5, value.dtype) for value in state.values()]
    own = tb.dictionary({key: tb.tensor(str(i), value) for i, (key, value) in enumerate(state.items())})
    average = {f"module.{key}": tb.tensor(str(i), value) for i, (key, value) in enumerate(state.items(), len(arrays))}
    for content, lines in (
        (
            {"state_dict": own, "ema_state_dict": tb.dictionary(average), "meta": b"}"},
            ("left out  ema_state_dict (another",),
        ),
        ({"meta": b"}", "ema_state_dict": tb.dictionary(average)}, ("weights   ema_state_dict.module.*, an average",)),
    ):
        file.write_bytes(tb.zip_file(b"\x80\x02" + tb.dictionary(content) + b".", [*arrays, *half]))
        assert convert(file, "centernet_r18_mmdet", tmp_path / "out") == 0
        said = capsys.readouterr().out
        assert all(line in said for line in lines) and "meta: beside the weights" in said
        kernel = load_inference(str(tmp_path / "out")).variables["params"]["backbone"]["trunk"]["conv1"]["kernel"]
        wanted = state["backbone.conv1.weight"].transpose(2, 3, 1, 0) * (1 if "state_dict" in content else 0.5)
        np.testing.assert_array_equal(kernel, wanted)
    # Names of a file's author stay on their line.
    tb.save(file, state, wrapper="state_dict", beside={"a\n\x1b[31mb": tb.number(1), "x" * 500: tb.number(1)})
    assert convert(file, "centernet_r18_mmdet", tmp_path / "out") == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("left out"))
    assert line == f"left out  a [31mb, {'x' * 60}...: beside the weights in the file"


def test_a_file_with_more_in_it_says_what(tmp_path: pathlib.Path, capsys: Any) -> None:
    pose = {f"{head}.0.weight": np.zeros((64, 64, 3, 3), np.float32) for head in ("hps", "hm_hp")}
    tb.save(tmp_path / "model.pth", released.arrays("centernet_r18", 3) | pose)
    assert main(["convert", str(tmp_path / "model.pth"), "--model", "centernet_r18", "--out", str(tmp_path / "o")]) == 2
    assert one_error(capsys).endswith("; it looks like centernet_r18 with hps, hm_hp beside it\n")


def test_numbers_that_are_not_finite_are_told(tmp_path: pathlib.Path, capsys: Any) -> None:
    state = checkpoint("centernet_r18", classes=3)
    state["hm.2.bias"][1], state["bn1.running_var"][0] = np.nan, np.inf
    tb.save(tmp_path / "model.pth", state)
    assert convert(tmp_path / "model.pth", "centernet_r18", tmp_path / "out") == 0
    said = capsys.readouterr().err
    assert said.startswith("warning: 2 arrays") and said.count("\n") == 1 and "heatmap_out/bias;" in said


def test_a_disk_that_takes_no_more_is_one_line_and_nothing_stays(tmp_path: pathlib.Path) -> None:
    tb.save(tmp_path / "model.pth", checkpoint("centernet_r18", classes=3))
    (tmp_path / "into").mkdir()
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000)); sys.argv[0] = 'kpjax'\n"
    )
    program += "from kpjax.__main__ import main; sys.exit(main())"
    arguments = [
        "convert",
        str(tmp_path / "model.pth"),
        "--model",
        "centernet_r18",
        "--out",
        str(tmp_path / "into" / "x"),
    ]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments, *OPTIONS], capture_output=True, text=True, timeout=120
    )
    wanted = f"error: {tmp_path}/into/x cannot be written: File too large; earlier checkpoints are intact\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", wanted)
    assert not list((tmp_path / "into").iterdir())


def test_half_the_keys_and_other_shapes_give_no_result(tmp_path: pathlib.Path, capsys: Any) -> None:
    whole = checkpoint("centernet_r18", classes=3)
    half = dict(list(whole.items())[::2])
    odd = {key: value[:, :1].copy() if key == "layer1.0.conv1.weight" else value for key, value in whole.items()}
    for state, words in ((half, "missing from the checkpoint"), (odd, "another shape")):
        tb.save(tmp_path / "model.pth", state)
        assert convert(tmp_path / "model.pth", "centernet_r18", tmp_path / "out") == 2
        assert words in one_error(capsys)
    (tmp_path / "model.pth").write_text("a text")
    assert convert(tmp_path / "model.pth", "centernet_r18", tmp_path / "out") == 2
    assert "not a PyTorch file" in one_error(capsys)
    assert not (tmp_path / "out").exists()


def test_mistakes_on_the_command_line(tmp_path: pathlib.Path, capsys: Any) -> None:
    file, names = tmp_path / "model.pth", tmp_path / "names.txt"
    tb.save(file, checkpoint("centernet_r18", classes=3))
    names.write_text("cat\n")
    assert convert(file, "centernet_r19", tmp_path / "out") == 2
    assert "did you mean 'centernet_r18'" in one_error(capsys)
    assert convert(file, "centernet_r18", tmp_path / "out", "--names", str(names)) == 2
    assert "1 names and the checkpoint 3 classes" in one_error(capsys)
    assert convert(file, "centernet_r18", tmp_path / "out", "--option", "depth") == 2
    assert "KEY=VALUE" in one_error(capsys)
    names.write_bytes("caf\u00e9\n".encode("latin-1"))
    assert convert(file, "centernet_r18", tmp_path / "out", "--names", str(names)) == 2
    assert "UTF-8" in one_error(capsys)
    assert convert(file, "centernet_r18", tmp_path / "out", "--names", str(tmp_path / "none")) == 2
    assert "--names" in (text := one_error(capsys)) and "no such file" in text
    assert convert(file, "centernet_r18", names / "out") == 2
    assert f"{names}/out cannot be written: Not a directory" in one_error(capsys)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text('{"mine": 1}')
    assert convert(file, "centernet_r18", tmp_path / "out") == 2
    assert "no inference checkpoint" in one_error(capsys)


def test_options_of_every_kind() -> None:
    given = ["a=256", "b=0.2", "c=256,", "d=256,128", "e=true", "f=bilinear", "g=-1e-3"]
    wanted = {"a": 256, "b": 0.2, "c": (256,), "d": (256, 128), "e": True, "f": "bilinear", "g": -1e-3}
    found = _options(given)
    assert found == wanted and all(type(found[key]) is type(value) for key, value in wanted.items())
    assert kpjax.build("centernet_r18", 3, **_options(["wh_weight=0.2", "deconv=8,"])).options


def test_class_heads_are_told_by_their_shapes() -> None:
    def build(classes: int) -> Any:
        return kpjax.build("centernet_r18", classes, class_specific_wh=True, **SMALL)

    assert class_axes(build) == {
        "params/heads/heatmap_out/bias": (0, 1),
        "params/heads/heatmap_out/kernel": (3, 1),
        "params/heads/wh_out/bias": (0, 2),
        "params/heads/wh_out/kernel": (3, 2),
    }
    plain = checkpoint("centernet_r18", classes=7)
    assert count_classes(lambda k: kpjax.build("centernet_r18", k, **SMALL), plain) == 7
    for shape in ((), (7,), (7, 8)):  # of another rank: a mismatch for import_torch, no crash
        count_classes(build, {key: np.zeros(shape) for key in plain})
    assert count_classes(build, {"conv1.weight": np.zeros((8, 3, 7, 7))}) == 0
