"""The methods that learn more than boxes from a centre: the smallest of each, with data, for test_every_method.py."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import kpjax
from kpjax.config import Config
from kpjax.datasets import figures, shapes
from kpjax.detectors.base import Detector
from kpjax.detectors.extreme_targets import KEYPOINTS
from kpjax.detectors.saccade_targets import ATTENTION
from kpjax.extreme_points import EXTREME_POINTS
from kpjax.objects import Objects, Solid
from tests.kitti_folder import write_kitti
from tests.tiny import OPTIONS, TwoLayers

CONFIG = """
from kpjax.config import Config

def get_config():
    config = Config(batch=8, steps=6)
    config.model.name = {model!r}
    config.model.options = {options!r}
    config.data.canvas = 64
    config.data.max_boxes = 6
    config.data.threads = 1
    config.augment.kind = "none"
    config.augment.color = config.augment.lighting = 0.0
    config.augment.height = config.augment.width = {side}
    config.checkpoint.every = 2
    config.eval.batch = 4
    config.eval.resolution = "fixed"
    config.eval.top_k = 10
    for split, name in ((config.data.train, "train"), (config.data.val, "val")):
        split.images = {folder!r} + "/" + name
        split.annotations = {folder!r} + "/annotations/instances_" + name + ".json"
{more}    return config
"""


@dataclasses.dataclass(frozen=True)
class Method:
    """One model, small, and what its tests need to know.

    options: of the model.  sides, stride: of the inputs and maps of `two_layers`, the network of one convolution.
    heads: its heads for so many classes and points.  data: makes a folder's data set.  kind: of the crops.
    settings: further lines of its configuration.  needs: of `open_source`.  batch: puts into random objects what the
    method learns.  parts: of the loss; close: how near those of one device and of eight are, relatively.  measured:
    figures of an evaluation.  found: fields of a detection beside box and score, with the largest difference between
    one process and two.  biases, seed: added to heads of random weights, and how those are drawn, so that they find
    something.
    """

    model: str
    options: dict[str, Any]
    heads: Callable[[int, int], tuple[tuple[str, int], ...]]
    parts: tuple[str, ...]
    classes: tuple[str, ...] = shapes.CLASSES
    sides: tuple[int, int] = (64, 64)
    stride: int = 4
    data: Callable[[pathlib.Path], Any] = lambda folder: shapes.write(str(folder), train=11, val=5, size=64)
    settings: str = ""
    needs: dict[str, bool] = dataclasses.field(default_factory=dict)
    batch: Callable[[np.random.Generator, Objects], Objects] = lambda rng, objects: objects
    kind: str = "none"
    measured: tuple[str, ...] = ("AP", "AP50", "ARl")
    found: dict[str, float] = dataclasses.field(default_factory=dict)
    biases: dict[str, float] = dataclasses.field(default_factory=dict)
    seed: int = 0
    close: float = 1e-5

    @property
    def less(self) -> int:
        """What the model's own inputs are smaller by than those of `two_layers`."""
        return kpjax.build(self.model).less

    def write(self, folder: pathlib.Path) -> None:
        """Make the data set and config.py, for inputs that the model itself takes."""
        self.data(folder)
        height, width = (side - self.less for side in self.sides)
        size = f"    config.augment.height, config.augment.width = {height}, {width}\n"
        text = CONFIG.format(
            model=self.model, options=self.options, side=height, folder=str(folder), more=size + self.settings
        )
        (folder / "config.py").write_text(text.replace("FOLDER", repr(str(folder))))

    def detector(self, classes: int, points: Any = None) -> Detector:
        """The model itself.  points: those of the data, which only a model of joints takes."""
        given = {"points": points} if self.needs.get("keypoints") and points is not None else {}
        return kpjax.build(self.model, classes, **self.options, **given)

    def two_layers(self, classes: int, points: Any = None) -> Detector:
        """The model around a network that compiles in a second, for inputs of whole `sides`."""
        detector = self.detector(classes, points)
        heads = self.heads(classes, len(detector.points) if detector.points else 0)
        net: nn.Module = TwoLayers(classes=classes, more=heads, stride=self.stride)
        return dataclasses.replace(detector, net=WithAttention(net) if self.model == SACCADE else net, less=0)


SACCADE = "cornernet_saccade"


class WithAttention(nn.Module):
    """CornerNet-Saccade's maps of a network's: inputs are filled up to its stride, coarse attention maps are means."""

    net: nn.Module

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> list[dict[str, jax.Array]]:
        images = jnp.pad(images, ((0, 0), *[(0, -side % 4) for side in images.shape[1:3]], (0, 0)))
        (maps,) = self.net(images, train)
        for name, ratio in ATTENTION.items():
            maps[name] = nn.avg_pool(maps[name], (ratio // 4,) * 2, (ratio // 4,) * 2)
        return [maps]


def corner_heads(classes: int, _: int) -> tuple[tuple[str, int], ...]:
    heads = (("heat", classes), ("tag", 1), ("off", 2))
    return tuple((f"{side}_{head}", channels) for side in ("tl", "br") for head, channels in heads)


def with_points(count: int, alike: bool) -> Callable[[np.random.Generator, Objects], Objects]:
    """Random points for random objects.  alike: all of an object's are visible, or none."""

    def put(rng: np.random.Generator, objects: Objects) -> Objects:
        shape = (*objects.labels.shape, count)
        points = rng.uniform(0, 64, (*shape, 2)).astype(np.float32)
        seen = rng.integers(0, 3, shape[:-1] if alike else shape, np.int32)
        seen = np.broadcast_to(seen[..., None], shape) if alike else seen
        return dataclasses.replace(objects, points=points, seen=seen)

    return put


def with_solid(rng: np.random.Generator, objects: Objects) -> Objects:
    shape = objects.labels.shape
    solid = Solid(
        depth=rng.uniform(5, 40, shape).astype(np.float32),
        size=rng.uniform(1, 4, (*shape, 3)).astype(np.float32),
        orientation=rng.uniform(-np.pi, np.pi, shape).astype(np.float32),
    )
    return dataclasses.replace(objects, solid=solid)


HOURGLASS: dict[str, Any] = {"features": (4, 4), "blocks": (1, 1), "stem": 4, "stacks": 1, "head_channels": 4}
CORNERS = ("loss", "heatmap", "pull", "push", "offset")
METHODS = {
    "pose": Method(
        "centernet_r18_pose",
        OPTIONS,
        lambda _, count: (("keypoint_offset", 2 * count), ("joint_heatmap", count), ("joint_offset", 2)),
        ("loss", "joint_heatmap"),
        classes=figures.CLASSES,
        data=lambda folder: figures.write(str(folder), train=11, val=5, size=64),
        needs={"keypoints": True},
        batch=with_points(17, alike=False),
        measured=("AP", "AP50", "ARl", "box_AP", "box_AP50"),
        found={"keypoints": 2e-3},
        biases={"wh_out": 4.0},
    ),
    "box3d": Method(
        "centernet_r18_3d",
        OPTIONS,
        lambda *_: (("depth", 1), ("rotation", 8), ("size3d", 3)),
        ("loss", "depth", "rotation", "size3d"),
        classes=("Pedestrian", "Car", "Cyclist"),
        sides=(32, 96),
        data=lambda folder: write_kitti(folder, frames=16, size=(32, 96)),
        settings="    config.data.source, config.data.kitti_dir = 'kitti', FOLDER\n"
        "    config.data.canvas, config.augment.flip = 96, 0.0\n"
        "    config.data.train.images = config.data.train.annotations = ''\n"
        "    config.data.val.images = config.data.val.annotations = ''\n",
        needs={"solid": True},
        batch=with_solid,
        kind="shift",
        measured=("AP", "Car/2d@0.70/moderate/R40", "Cyclist/3d@0.25/hard/R11"),
    ),
    "extreme": Method(
        "extremenet_hg104",
        HOURGLASS,
        lambda classes, _: tuple(
            [(f"{name}_heat", classes) for name in KEYPOINTS] + [(f"{name}_off", 2) for name in EXTREME_POINTS.names]
        ),
        ("loss", "heatmap", "offset"),
        needs={"outlines": True},
        batch=with_points(4, alike=True),
        found={"keypoints": 2e-2},
    ),
    "squeeze": Method("cornernet_squeeze", HOURGLASS | {"branch": 4, "distance": 9.0}, corner_heads, CORNERS, stride=8),
    "saccade": Method(
        SACCADE,
        HOURGLASS
        | {"features": (4,) * 4, "blocks": (1,) * 4, "branch": 4, "distance": 9.0}
        | {"view": 63, "crops": 4, "crops_at_once": 2},
        lambda classes, _: (*corner_heads(classes, 0), *((name, 1) for name in ATTENTION)),
        (*CORNERS, "attention"),
        settings="    config.augment.kind, config.eval.resolution = 'object', 'keep'\n",
        kind="object",
    ),
}


def config_of(folder: pathlib.Path) -> Config:
    """The configuration that `Method.write` wrote."""
    names: dict[str, Any] = {}
    exec(compile((folder / "config.py").read_text(), "config.py", "exec"), names)
    config: Config = names["get_config"]()
    return config
