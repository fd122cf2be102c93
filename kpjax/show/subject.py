"""What a report is of: a detector, its run, and what was found in a split."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from kpjax.config import Config
from kpjax.data.source import Source
from kpjax.detectors.base import Detector
from kpjax.inference.outputs import Evaluation


@dataclasses.dataclass(frozen=True)
class Subject:
    """What a report is of.

    place: the work directory or checkpoint, as it was given.  workdir: a work directory, for its history; "": none.
    step: of the checkpoint; None: it does not say.  names: of the classes.  split: "val" or "train".  source,
    evaluation: the split and what was found in it; None: there is none.  train: the training split.  train_ap: AP on
    `train_images` of its images; nan: not measured.  steps: of the whole run.  oracle: heads -> AP with them replaced
    by the ground truth, "" -> AP with none; {}: not measured.  missing: what the report lacks and why, a line each.
    """

    place: str
    detector: Detector
    config: Config
    names: tuple[str, ...]
    workdir: str = ""
    step: int | None = None
    split: str = "val"
    source: Source | None = None
    evaluation: Evaluation | None = None
    train: Source | None = None
    train_ap: float = float("nan")
    train_images: int = 0
    steps: int | None = None
    oracle: Mapping[str, float] = dataclasses.field(default_factory=dict)
    missing: tuple[str, ...] = ()
