"""Which size has the network's input at a step?  With `config.augment.sizes` one of a few, each a program of its own.

A program has fixed shapes: each size is compiled once, before the first step, and a smaller one takes less time.  One
program with a part of its input empty would take the time of the largest size at every step.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from kpjax.config import Config


def sizes_of(config: Config) -> list[int]:
    """The widths of the input, the largest first: it needs the most memory."""
    return sorted(set(config.augment.sizes or (config.augment.width,)), reverse=True)


def width_at(config: Config, step: int) -> int:
    """The width of the input at a step, counted from 0: drawn by the step's number alone, on all hosts alike."""
    sizes = sizes_of(config)
    return sizes[np.random.default_rng([config.seed, step]).integers(len(sizes))]


def at_width(config: Config, width: int) -> Config:
    """The configuration of the steps with inputs of this width, the height in proportion."""
    augment = config.augment
    height = round(augment.height * width / augment.width)
    return dataclasses.replace(config, augment=dataclasses.replace(augment, width=width, height=height))
