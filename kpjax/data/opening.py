"""Opening the splits that a configuration names: a COCO folder or a TFDS set."""

from __future__ import annotations

from kpjax.config import DataConfig
from kpjax.data.coco import CocoFolder
from kpjax.data.source import Mistake, Source, stop
from kpjax.data.tfds import Tfds
from kpjax.errors import ConfigError


def open_source(config: DataConfig, split: str, mistake: Mistake = stop, *, keypoints: bool = False) -> Source:
    """Open the split "train" or "val" that `config` describes.

    mistake: see `kpjax.data.coco.CocoFolder`.  keypoints: read the objects' keypoints too.
    Raises ConfigError where a setting is missing and DataError where the data cannot be used.
    """
    if split not in ("train", "val"):
        raise ConfigError(f"split is {split!r}; choose 'train' or 'val'")
    if config.source == "coco":
        folder = config.train if split == "train" else config.val
        for key, value in (("images", folder.images), ("annotations", folder.annotations)):
            if not value:
                raise ConfigError(f"config.data.{split}.{key} is empty; set it, e.g. --config.data.{split}.{key}=PATH")
        return CocoFolder(
            folder.images, folder.annotations, config.bad_images, mistake, crowds=config.crowds, keypoints=keypoints
        )
    if config.source == "tfds":
        name = config.tfds_train if split == "train" else config.tfds_val
        return Tfds(config.tfds_name, name, config.tfds_dir or None, crowds=config.crowds, keypoints=keypoints)
    raise ConfigError(f"config.data.source is {config.source!r}; choose one of 'coco', 'tfds'")


def has_validation(config: DataConfig) -> bool:
    """Whether the settings name a validation split."""
    return bool(config.val.annotations if config.source == "coco" else config.tfds_val)
