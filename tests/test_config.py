"""Settings: checked once, written and read back unchanged."""

from __future__ import annotations

import json
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
        ("optim.name", "adamw"),
        ("model.bn_groups", 5),
        ("model.remat", 1),
        ("data", {}),
        ("augment.scales", ()),
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
