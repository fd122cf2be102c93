"""Settings chosen from made-up statistics of data sets and machines."""

from __future__ import annotations

import dataclasses
import runpy
from pathlib import Path

import numpy as np
import pytest

from kpjax.config import Config, differences, flat, recipe
from kpjax.data.source import Annotations, make_source
from kpjax.errors import ConfigError
from kpjax.training.choices import (
    Choices,
    Facts,
    Machine,
    Wishes,
    choose,
    facts_of,
    own_options,
    set_steps,
    steps_in_time,
)
from kpjax.training.config_file import config_text

CPU, GPU = Machine("cpu", 1, 2**34), Machine("gpu", 1, 2**36)
BCCD = Facts(images=205, val_images=87, side=640, aspect=0.75, object_size=0.13, most_objects=28)


def chosen(facts: Facts, machine: Machine = CPU, model: str = "centernet_r18", **wishes) -> Choices:
    choices = choose(facts, machine, Wishes(**wishes), model, {}, "asked for")
    choices.config.check()
    keys = {key.removeprefix("config.") for key in flat(choices.config)}
    assert set(choices.reasons) <= keys and all(choices.reasons.values())
    return choices


def test_a_few_hundred_images_on_a_cpu_are_the_recipe_of_bccd() -> None:
    recipe = runpy.run_path(str(Path(__file__).parents[2] / "configs" / "bccd_r18.py"))["get_config"]()
    config = chosen(BCCD).config
    changed = {line.split(":")[0].removeprefix("config.") for line in differences(recipe, config)}
    # 28 objects fit into fewer slots; 1,537 steps are 60 epochs.
    assert changed == {"data.max_boxes", "steps", "eval.every", "checkpoint.every"}
    assert config.steps == round(60 * 205 / 8) and config.data.max_boxes == 32


def test_a_ttfnet_follows_the_recipe_for_own_data() -> None:
    own = recipe("own")
    config = choose(BCCD, CPU, Wishes(), "ttfnet_r18", own_options(small=True), "on a CPU").config.check()
    changed = {line.split(":")[0].removeprefix("config.") for line in differences(own, config)}
    assert changed == {
        *("steps", "eval.every", "checkpoint.every"),
        *("data.max_boxes", "optim.warmup_steps", "optim.ema"),
    }
    assert config.steps == round(100 * 205 / 8) and (config.optim.warmup_steps, config.optim.ema) == (100, 0.9973)
    set_steps(config, 20)
    assert (config.optim.warmup_steps, config.optim.ema) == (2, 0.65)
    assert set_steps(config, 3) is None and config.check().optim.ema == 0
    other = chosen(BCCD).config
    assert (other.optim.name, other.optim.schedule, other.optim.ema) == ("adam", "step", 0)


def test_on_a_gpu_a_ttfnet_has_its_whole_width_and_the_same_rate() -> None:
    images = dataclasses.replace(BCCD, images=2000)
    config = choose(images, GPU, Wishes(), "ttfnet_r18", own_options(small=False), "").config.check()
    assert config.model.options == {"dcn": False} and config.batch == 64
    assert (config.optim.name, config.optim.lr, config.optim.lr_batch) == ("muon", recipe("own").optim.lr, 64)


def test_on_a_cpu_adam_moves_a_network_of_the_whole_width() -> None:
    choices = choose(BCCD, CPU, Wishes(init_from="resnet18.pth"), "ttfnet_r18", own_options(small=False), "")
    optim = choices.config.check().optim
    assert (optim.name, optim.lr, optim.schedule) == ("adam", 5e-4, "wsd")
    assert "double the time" in choices.reasons["optim.name"]


def test_small_objects_get_a_larger_input() -> None:
    sizes = [chosen(Facts(500, 100, 4000, 0.75, part, 40)).config.augment.width for part in (0.1, 0.04, 0.026)]
    assert sizes == [256, 384, 512]
    many = chosen(Facts(500, 100, 4000, 0.75, 0.004, 900))
    assert many.config.augment.width == 512 and "cut the images into parts" in many.reasons["augment.height"]
    assert many.config.data.max_boxes == 1024 and many.config.eval.top_k == 1024
    on_gpu = [chosen(Facts(500, 100, 4000, 0.75, part, 40), GPU).config.augment.width for part in (0.1, 0.019, 0.004)]
    assert on_gpu == [512, 640, 1024]


def test_huge_images_are_shrunk_and_small_ones_are_not_enlarged() -> None:
    huge = chosen(Facts(500, 100, 12_000, 0.75, 0.1, 10), GPU).config
    assert huge.data.canvas == 2 * huge.augment.width == 1024
    tiny = chosen(Facts(500, 100, 90, 1.0, 0.3, 3)).config
    assert (tiny.augment.width, tiny.data.canvas) == (128, 96)


def test_few_and_many_images() -> None:
    three = chosen(Facts(3, 1, 640, 0.75, 0.1, 5)).config
    assert (three.batch, three.steps) == (8, 1500)
    assert chosen(Facts(3, 1, 640, 0.75, 0.1, 5), GPU).config.batch == 8
    many = Facts(100_000, 5_000, 640, 0.75, 0.1, 90)
    assert chosen(many).config.batch == 8 and chosen(many).config.steps == 60 * 100_000 // 8
    assert chosen(many, GPU).config.batch == 128
    assert chosen(Facts(1000, 200, 640, 0.75, 0.1, 9), GPU).config.batch == 32
    assert chosen(BCCD, Machine("gpu", 3, 2**36)).config.batch == 9


def test_what_is_asked_for_is_taken() -> None:
    asked = chosen(BCCD, size=320, epochs=4, init_from="r18.pth")
    config = asked.config
    assert (config.augment.height, config.steps, config.init_from) == (320, 102, "r18.pth")
    assert asked.reasons["augment.height"] == "--size" and "--epochs 4" in asked.reasons["steps"]
    with pytest.raises(
        ConfigError, match=r"--size 300: centernet_r18 takes sides that are multiples of 32 .*e\.g\. 320"
    ):
        chosen(BCCD, size=300)


def test_other_models_get_sizes_that_they_take() -> None:
    corner = chosen(BCCD, model="cornernet_hg104").config
    assert (corner.augment.height + 1) % 128 == 0
    solid = chosen(Facts(50, 22, 1242, 0.302, 0.1, 15), model="centernet_r18_3d").config
    assert (solid.augment.height, solid.augment.width, solid.data.canvas) == (224, 640, 1248)
    assert solid.augment.kind == "shift" and solid.augment.flip == 0


def test_minutes_become_steps() -> None:
    assert steps_in_time(1450, 0.9, 12) == (int((1450 - 4 * 12) / 0.9), 5)
    assert steps_in_time(100, 0.5, 8) == (184, 2)
    assert steps_in_time(100, 0.5, 20) == (200, 1)
    assert steps_in_time(100, 0.5, 0) == (200, 5)
    for seconds in (-3, 1):
        with pytest.raises(ConfigError, match="give more minutes, or a smaller --size"):
            steps_in_time(seconds, 2.0, 30)
    config = Config(epochs=0)
    set_steps(config, 1000, 5)
    assert (config.eval.every, config.checkpoint.every, config.log_every) == (200, 67, 10)
    set_steps(config, 3, 1)
    assert (config.eval.every, config.log_every) == (0, 1)


def test_facts_of_a_split() -> None:
    rng = np.random.default_rng(0)
    count, per = 50, 4
    heights, widths = rng.integers(100, 200, count), rng.integers(300, 400, count)
    sides = rng.integers(5, 80, (count * per, 2)).astype(float)
    annotations = Annotations(
        image=np.repeat(np.arange(count), per),
        label=np.zeros(count * per, np.int32),
        bbox=np.concatenate([np.ones((count * per, 2)), sides], axis=1),
        area=sides.prod(axis=1),
        crowd=np.zeros(count * per, bool),
        ids=np.arange(count * per),
    )
    source = make_source(
        name="made up",
        classes=["x"],
        category_ids=[1],
        image_ids=np.arange(count),
        heights=heights,
        widths=widths,
        files=[str(n) for n in range(count)],
        annotations=annotations,
        read=lambda i: b"",
    )
    facts = facts_of(source, 7)
    assert (facts.images, facts.val_images, facts.most_objects) == (count, 7, per)
    assert facts.side in widths and (widths <= facts.side).mean() >= 0.98
    assert facts.object_size == pytest.approx(
        np.percentile(np.sqrt(sides.prod(1)) / np.repeat(widths, per), 10), rel=1e-6
    )


def test_the_configuration_file_gives_the_configuration(tmp_path: Path) -> None:
    choices = chosen(BCCD, epochs=3)
    config = choices.config
    config.model.options = {"width": 16, "deconv": (8,)}
    config.data.train.images = 'C:\\photos "mine"'
    text = config_text(config, 'Of "mine"\\x and """quotes""".', choices.reasons)
    path = tmp_path / "config.py"
    path.write_text(text)
    again = runpy.run_path(str(path))["get_config"]()
    assert again == config and differences(config, again) == []
    assert "config.batch = 8  # more is no faster on a CPU\n" in text
    assert "config.init_from = ''  # random weights" in text and "seed" not in text
