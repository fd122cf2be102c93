"""A small data set in KITTI's layout that tests draw for themselves: boxes on a road, with labels that fit them."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from kpjax.config import DataConfig
from kpjax.data.kitti_files import KittiObjects, objects_of_rows, write_objects

# type -> height, width, length in metres, and its colour
KINDS = {
    "Pedestrian": ((1.75, 0.65, 0.85), (230, 60, 50)),
    "Car": ((1.5, 1.65, 3.9), (50, 110, 230)),
    "Cyclist": ((1.75, 0.6, 1.8), (40, 190, 80)),
    "Van": ((2.2, 1.9, 5.0), (120, 60, 200)),
}
CAMERA_HEIGHT = 1.65  # metres above the road


def write_kitti(
    root: Path, frames: int = 4, size: tuple[int, int] = (96, 320), seed: int = 0
) -> tuple[DataConfig, list[KittiObjects]]:
    """Write ROOT/ImageSets and ROOT/training; returns the settings that read it, and each frame's labels as written.

    frames: from 000000 on; the last quarter of them, and at least the last one, are the split "val", the others
    "train" (a single frame is in both).  size: height, width of the PNGs.  Each frame has an object of each of KINDS,
    in boxes that turn to any side, and a DontCare; 2D boxes and alpha follow from the 3D boxes, and even and odd frames
    have different cameras.  An object's front is white, so that it can be told from its back.
    """
    folder = root / "training"
    for name in ("image_2", "label_2", "calib"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (root / "ImageSets").mkdir(exist_ok=True)
    names = [f"{n:06d}" for n in range(frames)]
    cut = max(1, frames - max(1, frames // 4)) if frames > 1 else 0
    for split, part in (("train", names[:cut] or names), ("val", names[cut:])):
        (root / "ImageSets" / f"{split}.txt").write_text("".join(f"{name}\n" for name in part))
    labels = []
    for n, name in enumerate(names):
        camera = camera_of(n, size)
        picture, objects = draw_frame(np.random.default_rng([seed, n]), camera, size)
        picture.save(folder / "image_2" / f"{name}.png")
        write_objects(str(folder / "label_2" / f"{name}.txt"), objects)
        lines = [f"{key}: {' '.join(f'{v:.12e}' for v in camera.ravel())}\n" for key in ("P0", "P1", "P2", "P3")]
        (folder / "calib" / f"{name}.txt").write_text("".join(lines) + "R0_rect: 1 0 0 0 1 0 0 0 1\n\n")
        labels.append(objects)
    side = -(-max(size) // 32) * 32
    return DataConfig(source="kitti", kitti_dir=str(root), canvas=side, max_boxes=8, threads=1), labels


def camera_of(frame: int, size: tuple[int, int]) -> np.ndarray:
    """(3, 4): a camera as KITTI's, scaled to images of `size`, height and width."""
    scale = size[1] / 1242 * (1.0, 1.05)[frame % 2]
    camera = np.array([[721.5, 0, 0, 44.86], [0, 721.5, 0, 0.2164], [0, 0, 0, 0]]) * scale
    camera[:2, 2] = size[1] / 2 - 0.5, size[0] * 0.46
    camera[2, 2:] = 1, 0.002746
    return camera


def corners_of(objects: KittiObjects) -> np.ndarray:
    """(n, 8, 3) the corners of 3D boxes, x y z in metres: four of the bottom, then four of the top; the first two are
    the front's."""
    along, across = np.array([1, 1, -1, -1]) / 2, np.array([1, -1, -1, 1]) / 2
    h, w, length = (side[:, None] for side in objects.size.T)
    x, z = along * length, across * w
    cos, sin = np.cos(objects.yaw)[:, None], np.sin(objects.yaw)[:, None]
    floor = np.stack([cos * x + sin * z, 0 * x, cos * z - sin * x], axis=-1) + objects.location[:, None]
    return np.concatenate([floor, floor - h[..., None] * (0, 1, 0)], axis=1)


def project(camera: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(..., 3) metres -> (..., 2) pixels."""
    homogeneous = np.concatenate([points, np.ones((*points.shape[:-1], 1))], axis=-1) @ camera.T
    return homogeneous[..., :2] / homogeneous[..., 2:]


def draw_frame(rng: np.random.Generator, camera: np.ndarray, size: tuple[int, int]) -> tuple[Image.Image, KittiObjects]:
    """A picture, and the objects in it with numbers as a label file has them, two decimals; then a DontCare."""
    height, width = size
    rows = []
    columns = rng.permutation(len(KINDS))  # a strip of the image each, so that all of them are seen
    for (usual, _), column in zip(KINDS.values(), columns, strict=True):
        z = rng.uniform(7, 24)
        u = width * (column + rng.uniform(0.3, 0.7)) / len(KINDS)
        x = ((u - camera[0, 2]) * z - camera[0, 3]) / camera[0, 0]
        sides = np.array(usual) * rng.uniform(0.9, 1.1, 3)
        yaw = rng.uniform(-math.pi, math.pi)
        rows.append([0, 0, 0, 0, 0, 0, 0, *sides, x, CAMERA_HEIGHT + rng.uniform(-0.1, 0.1), z, yaw])
    objects = objects_of_rows(list(KINDS), np.array(rows).round(2))
    objects, corners = with_boxes(objects, camera, size), corners_of(objects)

    noise = Image.fromarray(rng.integers(70, 150, (height // 8, width // 8, 3), np.uint8))
    picture = noise.resize((width, height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    for n in np.argsort(-objects.location[:, 2]):
        _draw_box(draw, camera, corners[n], KINDS[objects.types[n]][1])
    cares = [-1, -1, -10, width * 0.02, height * 0.05, width * 0.08, height * 0.2, *[-1] * 3, *[-1000] * 3, -10]
    return picture, _joined(objects, objects_of_rows(("DontCare",), np.round([cares], 2)))


def with_boxes(objects: KittiObjects, camera: np.ndarray, size: tuple[int, int]) -> KittiObjects:
    """The objects with the boxes, truncation and alpha that follow from what they are in 3D, two decimals."""
    pixels = project(camera, corners_of(objects))
    whole = np.concatenate([pixels.min(axis=1), pixels.max(axis=1)], axis=1)
    boxes = np.clip(whole, 0, np.array([size[1], size[0]] * 2) - 1).round(2)
    shown, all_of_it = (np.prod(b[:, 2:] - b[:, :2], axis=1) for b in (boxes, whole))
    alpha = objects.yaw - np.arctan2(objects.location[:, 0], objects.location[:, 2])
    return dataclasses.replace(
        objects,
        truncation=np.clip(1 - shown / all_of_it, 0, 1).round(2),
        alpha=((alpha + math.pi) % (2 * math.pi) - math.pi).round(2),
        boxes=boxes,
    )


def _draw_box(draw: ImageDraw.ImageDraw, camera: np.ndarray, corners: np.ndarray, color: tuple[int, ...]) -> None:
    """The four sides and the top of a box, (8, 3) corners, the far ones first; the front is white."""
    faces: list[tuple[list[int], Any]] = [([0, 1, 5, 4], (245, 245, 245))]
    faces += [(list(f), tuple(int(c * k) for c in color)) for f, k in (((1, 2, 6, 5), 0.8), ((3, 0, 4, 7), 0.8))]
    faces += [([2, 3, 7, 6], color), ([4, 5, 6, 7], tuple(int(c * 0.6) for c in color))]
    for points, filled in sorted(faces, key=lambda face: -np.linalg.norm(corners[face[0]].mean(axis=0))):
        draw.polygon([tuple(xy) for xy in project(camera, corners[points])], fill=filled)


def _joined(one: KittiObjects, other: KittiObjects) -> KittiObjects:
    fields = [f.name for f in dataclasses.fields(KittiObjects) if f.name not in ("types", "scores")]
    arrays = {name: np.concatenate([getattr(one, name), getattr(other, name)]) for name in fields}
    return KittiObjects(types=one.types + other.types, **arrays)
