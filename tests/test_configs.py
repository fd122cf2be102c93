"""Every file in configs/: it loads, its settings hold together, its detector can be built, its text says how."""

from __future__ import annotations

import importlib.util
import pathlib
import re
import sys
from types import ModuleType

import jax
import jax.numpy as jnp
import pytest

import kpjax
from kpjax.commands import flags
from kpjax.config import Config, coco2017, differences, from_json, recipe, to_json
from kpjax.detectors import from_config
from kpjax.errors import ConfigError
from kpjax.objects import PointSet
from kpjax.training.optimizer import learning_rate, scaled
from tests.convert import released

REPOSITORY = pathlib.Path(__file__).parents[1]
FILES = sorted((REPOSITORY / "configs").glob("*.py"))
COCO_IMAGES = 118287  # train2017
PEOPLE_IMAGES = 64115  # of them with people


def load(path: pathlib.Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_are_recipes() -> None:
    assert {"shapes_r18", "bccd_r18", "tiny_coco_r18", "coco_r18", "coco_r101", "coco_r18_mmdet"} <= {
        path.stem for path in FILES
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_config(path: pathlib.Path) -> None:
    config = load(path).get_config().check()
    assert not differences(config, from_json(to_json(config)))
    classes = config.model.num_classes or 80
    detector = from_config(config, classes)
    size = (config.augment.height, config.augment.width)
    images = jax.ShapeDtypeStruct((config.batch, *size, 3), jnp.float32)
    outputs, _ = jax.eval_shape(lambda x: detector.net.init_with_output(jax.random.key(0), x, train=True), images)
    cells = (config.batch, -(-size[0] // detector.stride), -(-size[1] // detector.stride))
    heatmaps = [x for name, x in outputs[-1].items() if name.endswith("heat") or name == "heatmap"]
    assert heatmaps and all(x.shape == (*cells, classes) and x.dtype == jnp.float32 for x in heatmaps)
    assert ("joint_heatmap" in outputs[-1]) == (detector.metric == "keypoints")
    if detector.metric == "keypoints":
        assert detector.points is not None
        assert outputs[-1]["joint_heatmap"].shape == (*cells, len(detector.points))


def test_coco_is_named_once() -> None:
    config = Config(steps=1)
    coco2017(config, "elsewhere")
    assert config.data.train.images == "elsewhere/train2017" and config.data.val.images == "elsewhere/val2017"
    assert config.data.train.annotations == "elsewhere/annotations/instances_train2017.json"
    assert config.data.val.annotations == "elsewhere/annotations/instances_val2017.json"
    assert not [path.name for path in FILES if "data/coco/" in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize(
    ("base", "name", "keys"),
    [
        ("coco_dla34_1x", "coco_dla34_2x", {"epochs", "optim.drops"}),
        ("coco_pose_dla34_1x", "coco_pose_dla34_3x", {"epochs", "optim.drops"}),
        ("coco_pose_hg104_1x", "coco_pose_hg104_3x", {"epochs", "optim.drops"}),
        ("coco_r18", "coco_r18_dcn", {"model.name"}),
        ("coco_r101", "coco_r101_dcn", {"model.name"}),
        ("coco_r18_mmdet", "coco_r18_dcn_mmdet", {"model.name"}),
        ("triplet_hg52", "triplet_hg104", {"model.name"}),
        ("shapes_cornernet", "shapes_triplet", {"model.name"}),
        ("tiny_coco_cornernet", "tiny_coco_triplet", {"model.name"}),
        ("ttfnet_r18_1x", "ttfnet_r18_2x", {"epochs"}),
        ("ttfnet_r18_1x", "ttfnet_r18_10x", {"epochs", "augment.kind", "augment.photometric"}),
        ("ttfnet_r18_2x", "ttfnet_r34_2x", {"model.name"}),
        ("ttfnet_r18_10x", "ttfnet_r34_10x", {"model.name"}),
        ("ttfnet_r18_1x", "ttfnet_d53_1x", {"model.name", "batch", "optim.lr", "optim.lr_batch"}),
        ("ttfnet_r18_2x", "ttfnet_d53_2x", {"model.name", "batch", "optim.lr", "optim.lr_batch"}),
        ("ttfnet_r18_10x", "ttfnet_d53_10x", {"model.name", "batch", "optim.lr", "optim.lr_batch"}),
    ],
)
def test_a_recipe_that_is_another_one_with_other_numbers(
    base: str, name: str, keys: set[str], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copied to another folder and read from there, as users do."""
    copy = tmp_path / "mine.py"
    copy.write_text((REPOSITORY / "configs" / f"{name}.py").read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    changed = differences(recipe(base), load(copy).get_config())
    assert {line.split(":")[0].removeprefix("config.") for line in changed} == keys


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_crowds_as_in_the_originals(path: pathlib.Path) -> None:
    """The programs of the three papers train on crowd boxes, mmdetection and its fork TTFNet do not.

    A set of one's own ignores them.
    """
    config = load(path).get_config()
    of_mmdetection = config.model.name.endswith("_mmdet") or config.model.name.startswith("ttfnet")
    paper = config.data.train.images == "data/coco/train2017" and not of_mmdetection
    assert config.data.crowds == ("train" if paper else "ignore")


def test_a_recipe_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"^there is no recipe 'none'; "):
        recipe("none")


@pytest.mark.parametrize(
    ("steps", "size", "text"),
    [
        (3, (256, 272), "config.augment.width is 272; centernet_r18 takes .* multiples of 32 pixels.*: 256 or 288$"),
        (3, (40, 64), "config.augment.height is 40; .*: 32 or 64$"),
        (2, (72, 64), "config.augment.height is 72; .* multiples of 16 .*: 64 or 80$"),
        (3, (256, 288), ""),
        (2, (48, 272), ""),
        (1, (40, 48), ""),
    ],
)
def test_sizes_that_the_network_cannot_take(steps: int, size: tuple[int, int], text: str) -> None:
    config = Config(steps=1)
    config.model.options = {"width": 4, "deconv": (4,) * steps, "head_channels": 4}
    config.augment.height, config.augment.width = size
    if text:
        with pytest.raises(ConfigError, match=text):
            from_config(config.check(), 3)
        return
    detector = from_config(config.check(), 3)
    outputs, _ = jax.eval_shape(
        lambda x: detector.net.init_with_output(jax.random.key(0), x, train=False),
        jax.ShapeDtypeStruct((1, *size, 3), jnp.float32),
    )
    assert outputs[-1]["heatmap"].shape == (1, size[0] // 4, size[1] // 4, 3)


@pytest.mark.parametrize(
    "name", ["centernet_r18", "centernet_dla34", "centernet_hg104", "cornernet_hg104", "ttfnet_d53"]
)
def test_rematerialisation_reaches_the_network(name: str) -> None:
    """What it computes then is the backbones' tests' to say."""
    config = Config(steps=1)
    config.model.name, config.model.options = name, dict(released.SMALL[name])
    config.augment.height = config.augment.width = side = 64 - kpjax.build(name, 1).less
    config.eval.resolution = "fixed"

    def program() -> str:
        net = from_config(config, 3).net
        images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
        return str(jax.make_jaxpr(lambda x: net.init_with_output(jax.random.key(0), x, train=True))(images))

    assert not re.search(r"(remat2|checkpoint)\[", program())
    config.model.remat = True
    assert re.search(r"(remat2|checkpoint)\[", program())


def test_points_are_those_of_the_data() -> None:
    config = Config(steps=1)
    config.model.name, config.model.options = "centernet_r18_pose", {"points": {"names": ["a"]}}
    with pytest.raises(ConfigError, match=r"config\.model\.options has points, which are those of the data"):
        from_config(config, 1, PointSet(("b", "c")))


def test_classes_have_to_agree() -> None:
    config = Config(steps=1)
    config.model.num_classes = 4
    with pytest.raises(ConfigError, match=r"config\.model\.num_classes is 4, .* 3 classes"):
        from_config(config, 3)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_recipe_says_which_batch_its_rate_is_for(path: pathlib.Path) -> None:
    module = load(path)
    config = module.get_config()
    assert config.optim.lr_batch == config.batch and config.optim.scale_lr == "none"
    if config.data.train.images == "data/coco/train2017":  # the published recipes; the small ones are for one device
        assert "--config.optim.scale_lr=linear" in module.__doc__ and "unverified" in module.__doc__
        assert bool(config.steps) == ("--config.steps" in module.__doc__)
    config.optim.scale_lr = "linear"
    config.batch = 2 * config.batch
    assert scaled(config.check()).lr == pytest.approx(2 * config.optim.lr)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_command(path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The docstring's first training command is one that train.py accepts."""
    text = (load(path).__doc__ or "").replace("\\\n", " ")
    commands = re.findall(r"^ {4}python (train\.py .*)$", text, re.MULTILINE)
    assert commands, "the docstring gives no command"
    argv = commands[0].split()
    assert f"configs/{path.name}" in argv and "--workdir" in argv
    argv[argv.index(f"configs/{path.name}")] = str(path)

    def define(values):  # as train.py does
        flags.define_config(values)
        flags.absl_flags.DEFINE_string("workdir", None, "", flag_values=values)

    monkeypatch.setattr(sys, "argv", argv)  # where ml_collections looks for --config.key
    values = flags.parse(argv, define)
    config = flags.read_config(values)
    named = (config.data.train.images, config.data.train.annotations)
    assert all(named) if config.data.source == "coco" else config.data.kitti_dir
    assert values["workdir"].value


@pytest.mark.parametrize(
    ("name", "batch", "rate"),
    [
        ("coco_r18", 114, 5e-4),
        ("coco_r101", 96, 3.75e-4),
        ("coco_r18_mmdet", 128, 0.02),
        ("coco_r18_dcn", 114, 5e-4),
        ("coco_r101_dcn", 96, 3.75e-4),
        ("coco_r18_dcn_mmdet", 128, 0.02),
        ("coco_dla34_1x", 128, 5e-4),
    ],
)
def test_published_schedule(name: str, batch: int, rate: float) -> None:
    """140 epochs of COCO, a tenth of the rate after 90, a hundredth after 120."""
    config = load(REPOSITORY / "configs" / f"{name}.py").get_config()
    steps = round(140 * COCO_IMAGES / batch)
    assert (config.batch, config.epochs) == (batch, 140)
    rates = learning_rate(config.optim, steps)
    for epoch, expected in ((5, rate), (89.9, rate), (90.1, rate / 10), (119.9, rate / 10), (120.1, rate / 100)):
        assert float(rates(jnp.int32(epoch * COCO_IMAGES / batch))) == pytest.approx(expected, rel=1e-5), epoch
    if name.endswith("mmdet"):
        assert float(rates(jnp.int32(0))) == pytest.approx(2e-5)
        assert float(rates(jnp.int32(500))) == pytest.approx(0.5 * rate, rel=0.01)


@pytest.mark.parametrize(
    ("name", "batch", "rate", "steps", "drop"),
    [
        ("cornernet_hg104", 49, 2.5e-4, 500_000, 450_000),
        ("cornernet_squeeze", 55, 2.5e-4, 500_000, 450_000),
        ("cornernet_hg104_mmdet", 48, 5e-4, round(210 * COCO_IMAGES / 48), round(180 * COCO_IMAGES / 48)),
        ("triplet_hg52", 48, 2.5e-4, 480_000, 450_000),
        ("triplet_hg104", 48, 2.5e-4, 480_000, 450_000),
        ("extremenet_hg104", 24, 2.5e-4, 250_000, 200_000),
        ("centernet_hg104", 24, 2.5e-4, round(50 * COCO_IMAGES / 24), round(40 * COCO_IMAGES / 24)),
    ],
)
def test_published_schedule_of_hourglasses(name: str, batch: int, rate: float, steps: int, drop: int) -> None:
    config = load(REPOSITORY / "configs" / f"{name}.py").get_config()
    assert config.batch == batch and steps == (config.steps or round(config.epochs * COCO_IMAGES / batch))
    rates = learning_rate(config.optim, steps)
    for step, expected in ((drop - 2, rate), (drop + 2, rate / 10), (steps, rate / 10)):
        assert float(rates(jnp.int32(step))) == pytest.approx(expected, rel=1e-5)
    if name == "cornernet_hg104_mmdet":
        assert float(rates(jnp.int32(0))) == pytest.approx(rate / 3)


@pytest.mark.parametrize(
    ("name", "size", "text"),
    [
        (
            "cornernet_hg104",
            (511, 512),
            "config.augment.width is 512; .* multiples of 16 pixels less 1, .*: 511 or 527$",
        ),
        ("triplet_hg52", (33, 511), "config.augment.height is 33; .*: 31 or 47$"),
        ("cornernet_hg104", (47, 511), ""),
    ],
)
def test_sides_of_corner_methods(name: str, size: tuple[int, int], text: str) -> None:
    config = Config(steps=1)
    config.model.name = name
    config.model.options = {"features": (4, 4, 4), "blocks": (1, 1, 1), "stem": 4, "branch": 4, "head_channels": 4}
    config.augment.height, config.augment.width = size
    if not text:
        from_config(config.check(), 3)
        return
    with pytest.raises(ConfigError, match=text):
        from_config(config.check(), 3)


@pytest.mark.parametrize(
    ("name", "batch", "rate", "epochs", "drops"),
    [
        ("ttfnet_r18_1x", 128, 0.016, 12, (9, 11)),
        ("ttfnet_r34_2x", 128, 0.016, 24, (18, 22)),
        ("ttfnet_d53_10x", 96, 0.015, 120, (90, 110)),
    ],
)
def test_published_schedules_of_ttfnet(name: str, batch: int, rate: float, epochs: int, drops: tuple[int, ...]) -> None:
    """Images stretched to 512x512; warm-up of 500 steps from a fifth; biases at twice the rate, without decay."""
    config = load(REPOSITORY / "configs" / f"{name}.py").get_config().check()
    assert (config.batch, config.epochs, config.model.bn_groups) == (batch, epochs, 8)
    assert (config.augment.height, config.augment.width, config.eval.resolution) == (512, 512, "fixed")
    optim = config.optim
    assert (optim.name, optim.momentum, optim.weight_decay, optim.clip) == ("sgd", 0.9, 4e-4, 35)
    assert (optim.bias_lr, optim.bias_decay) == (2, False)
    images = 117266  # of train2017, those with boxes
    rates = learning_rate(optim, round(epochs * images / batch))
    for number, epoch in enumerate(drops):
        for shift, drop in ((-0.1, number), (0.1, number + 1)):
            found = float(rates(jnp.int32((epoch + shift) * images / batch)))
            assert found == pytest.approx(rate / 10**drop, rel=1e-5)
    assert float(rates(jnp.int32(0))) == pytest.approx(rate / 5)
    assert float(rates(jnp.int32(250))) == pytest.approx(0.6 * rate)


def test_published_schedule_of_twice_the_length() -> None:
    config = load(REPOSITORY / "configs" / "coco_dla34_2x.py").get_config()
    steps = round(230 * COCO_IMAGES / 128)
    assert (config.batch, config.epochs) == (128, 230)
    rates = learning_rate(config.optim, steps)
    for epoch, expected in ((179.9, 5e-4), (180.1, 5e-5), (209.9, 5e-5), (210.1, 5e-6)):
        assert float(rates(jnp.int32(epoch * COCO_IMAGES / 128))) == pytest.approx(expected, rel=1e-5), epoch


def test_the_published_schedule_of_3d_boxes() -> None:
    """xingyizhou's ddd_3dop.sh: half of the images scaled and moved, none mirrored, 70 epochs of 3,712 images."""
    config = load(REPOSITORY / "configs" / "kitti_dla34_3d.py").get_config().check()
    assert (config.batch, config.epochs, config.data.max_boxes, config.eval.preset) == (16, 70, 50, "na")
    augment = config.augment
    assert (augment.height, augment.width, augment.kind, augment.shift_probability) == (384, 1280, "shift", 0.5)
    assert (augment.scale, augment.shift, augment.shift_unit) == (0.4, 0.1, "side")
    assert augment.flip == augment.color == augment.lighting == 0
    assert (config.eval.resolution, config.eval.score_threshold) == ("fixed", 0.2)
    rates = learning_rate(config.optim, 70 * 232)
    for epoch, expected in ((44.9, 1.25e-4), (45.1, 1.25e-5), (59.9, 1.25e-5), (60.1, 1.25e-6)):
        assert float(rates(jnp.int32(epoch * 232))) == pytest.approx(expected, rel=1e-5), epoch


@pytest.mark.parametrize(
    ("name", "batch", "rate", "epochs", "drops"),
    [
        ("coco_pose_dla34_1x", 128, 5e-4, 140, (90, 120)),
        ("coco_pose_dla34_3x", 128, 5e-4, 320, (270, 300)),
        ("coco_pose_hg104_1x", 24, 2.5e-4, 50, (40,)),
        ("coco_pose_hg104_3x", 24, 2.5e-4, 150, (130,)),
    ],
)
def test_published_schedules_of_pose(name: str, batch: int, rate: float, epochs: int, drops: tuple[int, ...]) -> None:
    """xingyizhou's scripts: images with people alone, at most 32 of them, flip at test time."""
    config = load(REPOSITORY / "configs" / f"{name}.py").get_config()
    assert (config.batch, config.epochs, config.data.max_boxes, config.eval.preset) == (batch, epochs, 32, "flip")
    assert config.data.empty_images == "drop" and "person_keypoints_train2017" in config.data.train.annotations
    steps = round(epochs * PEOPLE_IMAGES / batch)
    rates = learning_rate(config.optim, steps)
    for number, epoch in enumerate(drops):
        for shift, drop in ((-0.1, number), (0.1, number + 1)):
            found = float(rates(jnp.int32((epoch + shift) * PEOPLE_IMAGES / batch)))
            assert found == pytest.approx(rate / 10**drop, rel=1e-5)
