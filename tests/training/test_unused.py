"""Settings without an effect are said; no recipe has any."""

from __future__ import annotations

import pathlib
import runpy
from typing import Any

import pytest

from kpjax.config import Config
from kpjax.training.unused import unused

FILES = sorted((pathlib.Path(__file__).parents[2] / "configs").glob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_recipes_set_nothing_in_vain(path: pathlib.Path) -> None:
    assert unused(runpy.run_path(str(path))["get_config"]()) == []


@pytest.mark.parametrize(
    "key, value, other, used",
    [
        ("optim.momentum", 0.8, "optim.name", "sgd"),
        ("optim.gamma", 0.2, "optim.schedule", "step"),
        ("optim.hold", 0.5, "optim.schedule", "wsd"),
        ("optim.drops", (0.5,), "optim.schedule", "step"),
        ("optim.warmup_start", 0.1, "optim.warmup_steps", 10),
        ("augment.shift", 0.3, "augment.kind", "shift"),
        ("augment.expand", 2.0, "augment.kind", "patch"),
        ("augment.mosaic_scale_range", (0.4, 1.0), "augment.mosaic", 0.5),
        ("augment.mosaic_until", 0.9, "augment.copy_paste", 0.5),
        ("optim.bias_decay", False, "optim.weight_decay", 0.1),
        ("optim.norm_decay", False, "optim.weight_decay", 0.1),
        ("optim.ema_tau", 500.0, "optim.ema", 0.99),
        ("augment.border", 64, "augment.kind", "window"),
        ("data.tfds_dir", "x", "data.source", "tfds"),
        ("data.train.images", "x", "data.source", "coco"),
        ("eval.max_side", 800, "eval.resolution", "keep"),
    ],
)
def test_a_setting_that_another_one_makes_void(key: str, value: Any, other: str, used: Any) -> None:
    config = Config(steps=1)
    config.optim.schedule, config.augment.kind = "cosine", "none"
    config.data.source, config.eval.resolution = "kitti", "fixed"

    def put(name: str, given: Any) -> None:
        *groups, last = name.split(".")
        node: Any = config
        for group in groups:
            node = getattr(node, group)
        setattr(node, last, given)

    put(key, value)
    (line,) = unused(config)
    said = "augment.mosaic" if key == "augment.mosaic_until" else other  # it belongs to both
    assert line.startswith(f"config.{key} = ") and f"has no effect: config.{said} is " in line
    put(other, used)
    assert unused(config) == []


def test_a_canvas_that_is_smaller_than_the_input() -> None:
    config = Config(steps=1)
    config.augment.height = config.augment.width = 1024
    assert unused(config, 600) == []  # no image is shrunk
    assert "config.data.canvas = 640 shrinks images, the largest of 2000 pixels" in unused(config, 2000)[0]


def test_only_kernels_decay_with_adamw() -> None:
    config = Config(steps=1)
    config.optim.name, config.optim.weight_decay, config.optim.norm_decay = "adamw", 0.05, False
    (line,) = unused(config)
    assert "config.optim.norm_decay = False has no effect: config.optim.name is 'adamw'" in line
    config.optim.norm_decay, config.optim.final_lr = True, 0.1
    (line,) = unused(config)
    assert "config.optim.schedule is 'step'" in line
