"""Settings: checked once, written and read back unchanged."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from kpjax import config as configs
from kpjax.config import Config
from kpjax.errors import ConfigError


def with_value(key: str, value: Any) -> Config:
    config = Config(steps=10)
    *groups, last = key.split(".")
    node: Any = config
    for group in groups:
        node = getattr(node, group)
    assert hasattr(node, last)
    setattr(node, last, value)
    return config


def test_json_gives_the_same_configuration_back() -> None:
    config = with_value("optim.drops", (0.5, 0.9))
    config.model.options = {"width": 8, "deconv": (8, 8, 8)}
    again = configs.from_json(configs.to_json(config))
    assert configs.differences(config, again) == []
    assert again.optim.drops == (0.5, 0.9)
    assert configs.to_json(again.check()) == configs.to_json(config)


def test_differences_name_the_keys() -> None:
    found = configs.differences(with_value("optim.lr", 0.1), with_value("optim.lr", 0.2))
    assert found == ["config.optim.lr: 0.1 -> 0.2"]


@pytest.mark.parametrize("text", ['{"optim": {"lrr": 1}}', '{"optim": 3}', "[1]"])
def test_json_of_something_else_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="config"):
        configs.from_json(text)


@pytest.mark.parametrize(
    "key, value",
    [
        ("batch", "abc"),
        ("batch", 0),
        ("batch", 8.0),
        ("batch", True),
        ("optim.lr", -1.0),
        ("optim.scale_lr", "linear"),  # without optim.lr_batch
        ("optim.scale_lr", "square"),
        ("optim.lr_batch", -1),
        ("optim.scale_warmup", -1),
        ("optim.lr", float("nan")),
        ("optim.ema", 1.0),
        ("optim.gamma", 0.0),
        ("optim.gamma", 1.5),
        ("augment.scale", 1.0),
        ("augment.scale", -0.1),
        ("augment.shift", -0.1),
        ("augment.shift", float("nan")),
        ("optim.drops", (0.9, 0.5)),
        ("optim.drops", 0.5),
        ("optim.accumulate", 3),
        ("optim.name", "lamb"),
        ("optim.trunk_lr", 2.0),
        ("optim.final_lr", -0.1),
        ("optim.ema_tau", -1.0),
        ("model.freeze_bn", "neck"),
        ("model.freeze_stages", -1),
        ("data.repeat_threshold", 1.5),
        ("model.bn_groups", 5),
        ("model.remat", 1),
        ("data", {}),
        ("augment.mosaic", 1.5),
        ("augment.mosaic_until", 0.0),
        ("augment.mosaic_scale_range", (0.5,)),
        ("augment.mosaic_scale_range", (2.0, 1.0)),
        ("augment.mosaic_scale_range", (0.0, 1.0)),
        ("augment.copy_paste", -0.1),
        ("augment.hue", 0.6),
        ("augment.grey", float("nan")),
        ("augment.sizes", (256, 16)),
        ("augment.sizes", (256.5,)),
        ("augment.scales", ()),
        ("augment.scales", (0.5, float("nan"))),
        ("augment.scales", (float("inf"),)),
        ("augment.scales", (True,)),
        ("model.options", None),
        ("model.options", ["width"]),
        ("data.exif", "on"),
        ("seed", 2**63),
        ("checkpoint.keep", 0),
        ("epochs", 2.0),
        ("steps", 0),
    ],
)
def test_a_bad_value_is_one_line_with_its_key(key: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        with_value(key, value).check()
    assert f"config.{key}" in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_with_keys_of_an_older_version_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config()
    config.eval.max_side, config.optim.lr = 800, 0.5
    old = json.loads(configs.to_json(config))
    old["eval"]["longest"] = old["eval"].pop("max_side")
    old["rate"] = old["optim"].pop("lr")
    del old["log_every"], old["sharding"]  # newer than the file: their defaults
    monkeypatch.setattr(
        configs,
        "RENAMED",
        {"config.eval.longest": "config.eval.max_side", "config.rate": "config.optim.lr", "config.x.y": "config.z"},
    )
    assert configs.from_json(json.dumps(old)) == config
    monkeypatch.setattr(configs, "RENAMED", {})
    with pytest.raises(ConfigError, match=r"config\.rate is not a setting of this version"):
        configs.from_json(json.dumps(old))


def test_renamed_keys_lead_to_keys_that_exist() -> None:
    keys = configs.flat(Config())
    assert not [new for new in configs.RENAMED.values() if new not in keys]
    assert not [old for old in configs.RENAMED if old in keys]


def test_a_key_that_is_gone_is_read_where_it_had_no_effect() -> None:
    assert not [key for key in configs.GONE if key in configs.flat(Config())]
    for key, value in configs.GONE.items():
        old = json.loads(configs.to_json(Config()))
        _, group, name = key.split(".")
        old[group][name] = value
        assert configs.from_json(json.dumps(old)) == Config()
        old[group][name] = 0.5
        with pytest.raises(ConfigError, match=f"{key} is not a setting of this version"):
            configs.from_json(json.dumps(old))


@pytest.mark.parametrize(
    "change, text",
    [
        (lambda c: setattr(c.optim, "learning_rate", 5.0), "key 'learning_rate'; did you mean config.optim.lr?"),
        (lambda c: setattr(c, "eval_every", 1), "config has no key 'eval_every'; did you mean config.eval.every?"),
        (lambda c: setattr(c, "lr", 1.0), "config has no key 'lr'; did you mean config.optim.lr?"),
        (lambda c: setattr(c.data.val, "annotation", "x"), "config.data.train or config.data.val has no key"),
        (lambda c: setattr(c, "optim", {"lr": 1.0}), "config.optim is a dict; it must be a kpjax.config.OptimConfig"),
        (lambda c: setattr(c.data, "train", c.optim), "config.data.train is a OptimConfig"),
        (lambda c: Config(btach=2), "config has no key 'btach'; did you mean config.batch?"),  # type: ignore[call-arg]
        (lambda c: dataclasses.replace(c.eval, top=2), "config.eval has no key 'top'; did you mean config.eval.top_k?"),
        (lambda c: c.optimizer, "config has no key 'optimizer'; did you mean config.optim?"),
        (lambda c: Config(data={"canvas": 3}), "config.data is a dict"),  # type: ignore[arg-type]
    ],
)
def test_a_name_that_does_not_exist_is_refused_with_the_nearest_one(change: Callable[[Config], Any], text: str) -> None:
    config = Config(steps=3)
    with pytest.raises((ConfigError, AttributeError)) as caught:
        change(config)
    assert text in str(caught.value) and "\n" not in str(caught.value)
    assert config == Config(steps=3)


def test_every_group_refuses_unknown_names() -> None:
    groups = [hint for hint in configs._keys(Config).values() if dataclasses.is_dataclass(hint)]
    assert len(groups) == 9
    for group in [Config, *groups]:
        with pytest.raises(ConfigError, match="has no key 'no_such'"):
            group().no_such = 1  # type: ignore[operator]


def test_settings_are_copied_replaced_and_pickled() -> None:
    config = Config(steps=3)
    config.data.train.images, config.model.options = "x", {"width": 8}
    assert copy.copy(config) == copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == config
    other = dataclasses.replace(config, steps=4)
    assert configs.differences(config, other) == ["config.steps: 3 -> 4"] and other.data.train.images == "x"
    assert not hasattr(config, "stepz")
