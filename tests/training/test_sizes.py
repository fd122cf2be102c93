"""Mixed scales of training: which size a step has."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from kpjax.config import Config
from kpjax.detectors import from_config
from kpjax.errors import ConfigError
from kpjax.training.report import crowded
from kpjax.training.sizes import at_width, sizes_of, width_at


def mixed() -> Config:
    config = Config(steps=8, batch=8)
    config.augment.height, config.augment.width, config.augment.sizes = 384, 512, (256, 512, 768)
    return config


def test_a_steps_size_follows_from_its_number() -> None:
    config = mixed()
    assert sizes_of(config) == [768, 512, 256]
    drawn = [width_at(config, step) for step in range(300)]
    assert drawn == [width_at(config, step) for step in range(300)]
    assert all(70 < count < 130 for count in Counter(drawn).values()) and set(drawn) == {256, 512, 768}
    config.seed = 1
    assert drawn != [width_at(config, step) for step in range(300)]
    config.augment.sizes = ()
    assert {width_at(config, step) for step in range(9)} == {512}


def test_the_height_is_in_proportion_and_nothing_else_changes() -> None:
    config = mixed()
    small = at_width(config, 256)
    assert (small.augment.height, small.augment.width) == (192, 256)
    assert (config.augment.height, config.augment.width) == (384, 512)
    assert at_width(small, 512) == config


def test_sizes_that_the_network_cannot_take() -> None:
    config = mixed()
    config.check()
    from_config(config, 3)
    config.augment.sizes = (256, 333)
    with pytest.raises(
        ConfigError, match=r"config\.augment\.sizes has 333: the height is 250; centernet_r18 takes sides"
    ):
        from_config(config, 3)
    for wrong in ((16,), (256.0,)):
        config.augment.sizes = wrong
        with pytest.raises(ConfigError, match=r"config\.augment\.sizes"):
            config.check()


def test_a_note_where_several_images_have_more_boxes_than_slots() -> None:
    config, counts = mixed(), np.full(50, 10)
    config.data.max_boxes = 39
    assert crowded(config, counts) == []
    config.augment.mosaic = 0.5
    (line,) = crowded(config, counts)
    assert "4 images have up to about 40 boxes" in line and "config.data.max_boxes = 39" in line
    config.data.max_boxes = 40
    assert crowded(config, counts) == [] and crowded(config, np.zeros(0)) == []
