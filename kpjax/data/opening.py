"""Opening the splits that a configuration names: a COCO folder, a TFDS set or KITTI's folders."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

from kpjax.config import DataConfig
from kpjax.data.coco import CocoFolder
from kpjax.data.kitti import KittiFolder, require_classes
from kpjax.data.source import Mistake, Source, stop, without_empty_images, without_solid
from kpjax.data.tfds import Tfds
from kpjax.errors import ConfigError
from kpjax.extreme_points import EXTREME_POINTS
from kpjax.images.decode import APPLY
from kpjax.objects import PointSet

NO_PAIR = "none"  # of config.data.mirror_pairs


def open_source(
    config: DataConfig,
    split: str,
    mistake: Mistake = stop,
    *,
    keypoints: bool | None = False,
    solid: bool | None = False,
    outlines: bool | None = False,
) -> Source:
    """Open the split "train" or "val" that `config` describes.

    mistake: see `kpjax.data.coco.CocoFolder`.  keypoints: read the objects' keypoints too; None: where there are any.
    `Source.points` then has the settings `config.data.mirror_pairs` and `config.data.sigmas`.  solid: with 3D boxes and
    cameras; None: where there are any.  outlines: with the extreme points of the objects' outlines, instead of
    keypoints; None: where there are any.  `kpjax.detectors.data_needed` says what a model needs of these.
    Raises ConfigError where a setting is missing or does not fit, and DataError where the data cannot be used.
    """
    if split not in ("train", "val"):
        raise ConfigError(f"split is {split!r}; choose 'train' or 'val'")
    if solid and config.source != "kitti":
        raise ConfigError(
            f"config.data.source is {config.source!r}, whose objects have no 3D boxes; a model of 3D boxes needs "
            "KITTI's folders, config.data.source='kitti'"
        )
    if outlines and config.source != "coco":
        raise ConfigError(
            f"config.data.source is {config.source!r}, whose objects have no outlines; a model of extreme points needs "
            "a COCO JSON with segmentations, config.data.source='coco'"
        )
    if config.source == "coco":
        folder = config.train if split == "train" else config.val
        for key, value in (("images", folder.images), ("annotations", folder.annotations)):
            if not value:
                raise ConfigError(f"config.data.{split}.{key} is empty; set it, e.g. --config.data.{split}.{key}=PATH")
        source = CocoFolder(
            folder.images,
            folder.annotations,
            config.bad_images,
            mistake,
            crowds=config.crowds,
            keypoints=keypoints,
            outlines=outlines,
        )
    elif config.source == "tfds":
        name = config.tfds_train if split == "train" else config.tfds_val
        options: dict[str, Any] = {"crowds": config.crowds, "keypoints": keypoints, "exif": config.exif}
        source = Tfds(config.tfds_name, name, config.tfds_dir or None, **options)
    elif config.source == "kitti":
        source = _kitti(config, split, mistake, keypoints)
    else:
        raise ConfigError(f"config.data.source is {config.source!r}; choose one of 'coco', 'tfds', 'kitti'")
    source = dataclasses.replace(source, exif=config.exif)
    if solid is False:
        source = without_solid(source)
    if source.points is None or source.points is EXTREME_POINTS:
        return source
    return dataclasses.replace(source, points=with_settings(source.points, config, source.name))


def _kitti(config: DataConfig, split: str, mistake: Mistake, keypoints: bool | None) -> Source:
    name = config.kitti_train if split == "train" else config.kitti_val
    for key, value, example in (("kitti_dir", config.kitti_dir, "PATH"), (f"kitti_{split}", name, split)):
        if not value:
            raise ConfigError(f"config.data.{key} is empty; set it, e.g. --config.data.{key}={example}")
    if keypoints:
        raise ConfigError(
            "config.data.source is 'kitti', whose objects have no keypoints; choose a model of boxes or 3D boxes"
        )
    if config.crowds != "ignore":
        raise ConfigError(
            f"config.data.crowds is {config.crowds!r}, but KITTI has no crowd boxes: its DontCare and neighbouring "
            "types are regions, never objects; set config.data.crowds='ignore'"
        )
    if config.exif == APPLY:
        raise ConfigError(
            "config.data.exif is 'apply', but KITTI's boxes and cameras fit the pixels as stored; set it to 'ignore'"
        )
    source = KittiFolder(config.kitti_dir, name, config.kitti_classes, config.bad_images, mistake)
    if split == "train":
        require_classes(source)
    return source


def training_images(source: Source, config: DataConfig) -> Source:
    """The images of a training split that a run learns from: all of them, or as `config.empty_images` says."""
    return without_empty_images(source) if config.empty_images == "drop" else source


def with_settings(points: PointSet, config: DataConfig, name: str) -> PointSet:
    """The points with the mirrored pairs and sigmas that `config` sets.

    name: of the split, for messages.  Raises ConfigError for names that the points lack, and where the number of
    sigmas is another one.
    """
    if config.sigmas and len(config.sigmas) != len(points):
        raise ConfigError(
            f"config.data.sigmas has {len(config.sigmas)} numbers and {name} {len(points)} keypoints; give one for each"
        )
    mirror = mirror_of_pairs(points.names, config.mirror_pairs, name) if config.mirror_pairs else points.mirror
    return dataclasses.replace(points, mirror=mirror, sigmas=tuple(map(float, config.sigmas)) or points.sigmas)


def mirror_of_pairs(names: tuple[str, ...], pairs: str, source: str) -> tuple[int, ...]:
    """`PointSet.mirror` of pairs written as in `config.data.mirror_pairs`.  Raises ConfigError, one line."""
    mirror = list(range(len(names)))
    paired: set[str] = set()
    for pair in [] if pairs == NO_PAIR else pairs.split(","):
        both = [name.strip() for name in pair.split(":")]
        if len(both) != 2 or not all(both):
            raise ConfigError(
                f"config.data.mirror_pairs has {pair!r}; give pairs of names such as left_eye:right_eye,"
                "left_ear:right_ear, or none"
            )
        for name in both:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
                raise ConfigError(
                    f"config.data.mirror_pairs names {name!r}, which is no keypoint of {source}; did you mean {near!r}?"
                )
            if name in paired:
                raise ConfigError(f"config.data.mirror_pairs names {name!r} twice; a keypoint is in one pair at most")
            paired.add(name)
        one, other = (names.index(name) for name in both)
        mirror[one], mirror[other] = other, one
    return tuple(mirror)


def has_validation(config: DataConfig) -> bool:
    """Whether the settings name a validation split."""
    names = {"coco": config.val.annotations, "tfds": config.tfds_val, "kitti": config.kitti_val}
    return bool(names.get(config.source))
