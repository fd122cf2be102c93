"""Writing a drawn data set, whatever it shows, in COCO's format: JPEG files and instances JSON."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from kpjax.errors import ConfigError

SPLITS = ("train", "val")
EMPTY_EVERY = 10  # the last of every ten images has no object

# (seed, split, index, size) -> the image (S, S, 3) uint8 and its annotations, COCO's without ids.
Draw = Callable[[int, str, int, int], tuple[np.ndarray, list[dict[str, Any]]]]


def image_rng(seed: int, split: str, index: int, size: int) -> np.random.Generator:
    """The random numbers of image `index` of a split.  Raises ConfigError on settings out of range."""
    _check(seed, size)
    if split not in SPLITS:
        raise ConfigError(f"split is {split!r}; choose one of {', '.join(map(repr, SPLITS))}")
    # spawn_key keeps the three numbers separate: no two (seed, split, index) share a stream of random numbers
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(SPLITS.index(split), index)))


def write_set(
    out_dir: str,
    kind: str,
    generator: dict[str, Any],
    draw: Draw,
    categories: list[dict[str, Any]],
    *,
    train: int,
    val: int,
    size: int,
    seed: int,
) -> bool:
    """Write both splits: `train/*.jpg`, `val/*.jpg` and `annotations/instances_{train,val}.json`.

    kind: what is drawn; `KIND.json` in the folder holds the settings.  generator: who draws, and in which version.
    A complete set of the same settings is left as it is: returns False then, True where it was
    written.  A set of other settings made by this function is replaced.  Raises ConfigError on
    settings out of range, and where `out_dir` holds anything else.
    """
    _check(seed, size)
    for name, number in (("train", train), ("val", val)):
        if number < 1:
            raise ConfigError(f"the {name} split would have {number} images; give at least 1")
    settings = generator | {"seed": seed, "size": size, "train": train, "val": val}
    marker = os.path.join(out_dir, f"{kind}.json")
    if os.path.isdir(out_dir) and os.listdir(out_dir):
        if not os.path.exists(marker):
            raise ConfigError(f"{out_dir}: not empty, and not a {kind} data set; choose another folder")
        if _complete(out_dir, marker, settings):
            return False
        for name in (*SPLITS, "annotations"):
            shutil.rmtree(os.path.join(out_dir, name), ignore_errors=True)
    os.makedirs(os.path.join(out_dir, "annotations"), exist_ok=True)
    _write_json(marker, settings)  # first, so that an interrupted run can be taken up again
    for split, number in zip(SPLITS, (train, val), strict=True):
        os.makedirs(os.path.join(out_dir, split), exist_ok=True)
        images, annotations = _write_images(os.path.join(out_dir, split), draw, split, number, size, seed)
        content = {"info": settings, "images": images, "annotations": annotations, "categories": categories}
        _write_json(_annotations(out_dir, split), content)
    return True


def _write_images(
    folder: str, draw: Draw, split: str, number: int, size: int, seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The JSON's "images" and "annotations" of a split, whose JPEG files are written."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(number):
        image, objects = draw(seed, split, index, size)
        name = f"{index:06d}.jpg"
        Image.fromarray(image).save(os.path.join(folder, name), quality=92)
        images.append({"id": index + 1, "file_name": name, "height": size, "width": size})
        for an_object in objects:
            annotations.append({"id": len(annotations) + 1, "image_id": index + 1} | an_object)
    return images, annotations


def _annotations(out_dir: str, split: str) -> str:
    return os.path.join(out_dir, "annotations", f"instances_{split}.json")


def _complete(out_dir: str, marker: str, settings: dict[str, Any]) -> bool:
    try:
        with open(marker, encoding="utf-8") as file:
            same = json.load(file) == settings
    except ValueError:  # cut off while it was written
        return False
    # a split's JSON is put in place after its images
    return same and all(os.path.exists(_annotations(out_dir, split)) for split in SPLITS)


def _write_json(path: str, content: dict[str, Any]) -> None:
    with open(path + ".part", "w", encoding="utf-8") as file:
        json.dump(content, file)
    os.replace(path + ".part", path)


def _check(seed: int, size: int) -> None:
    if seed < 0:
        raise ConfigError(f"seed is {seed}; it must be at least 0")
    if not 64 <= size <= 4096:
        raise ConfigError(f"size is {size}; it must lie between 64 and 4096 pixels")
