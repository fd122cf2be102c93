"""The configuration of a run: nested dataclasses, one a subject.

A file in `configs/` returns a `Config`; `--config.optim.lr=1e-3` on the command
line changes one field of it.  A key that does not exist is an error, in the file and on
the command line, and `Config.check` tests values and the rules between fields once, before
anything is allocated (kpjax.config_checks).

Units: sizes are pixels of the network's input unless a name says otherwise.
"""

# No `from __future__ import annotations` here: ml_collections reads the fields' types, which
# have to be classes and not their names.
import dataclasses
import difflib
import functools
import json
import runpy
from typing import Any, TypeVar, get_type_hints

from kpjax import recipes
from kpjax.config_checks import check_group, check_types, check_values
from kpjax.errors import ConfigError

_Group = TypeVar("_Group")


def _only_its_fields(group: type[_Group]) -> type[_Group]:
    """A dataclass of settings that refuses any other name, and another group's type where a group belongs.

    Without it a misspelt assignment in a file of settings would add an attribute that nobody reads.
    """
    hints, make = get_type_hints(group), group.__init__

    @functools.wraps(make)
    def init(self: Any, *args: Any, **values: Any) -> None:
        for name in values:
            if name not in hints:
                raise ConfigError(unknown_key(name, *_paths(group)))
        make(self, *args, **values)

    def assign(self: Any, name: str, value: Any) -> None:
        if name not in hints:
            raise ConfigError(unknown_key(name, *_paths(group)))
        if dataclasses.is_dataclass(hints[name]):
            check_group(value, hints[name], f"{_paths(group)[0]}.{name}")
        object.__setattr__(self, name, value)

    def missing(self: Any, name: str) -> Any:
        # Python asks for names like __deepcopy__ too, which need not exist.
        raise AttributeError(name if name.startswith("__") else unknown_key(name, *_paths(group)))

    for name, method in (("__init__", init), ("__setattr__", assign), ("__getattr__", missing)):
        setattr(group, name, method)
    return group


@_only_its_fields
@dataclasses.dataclass
class ModelConfig:
    """Which network, and how it computes."""

    name: str = "centernet_r18"  # a key of kpjax.list_models()
    num_classes: int = 0  # 0: as many as the training annotations list
    dtype: str = "float32"  # "float32" or "bfloat16": activations; parameters stay float32
    # How float32 activations are multiplied: "default": in TensorFloat-32 on a GPU, in bfloat16 on a TPU; "high": in
    # TensorFloat-32, in 3 bfloat16 passes; "highest": in float32, as a CPU always does.  Offsets of
    # deformable convolutions, the heads' last convolutions, losses and boxes are always computed as with "highest"
    precision: str = "default"
    remat: bool = False  # recompute each residual block in the backward pass: less memory, more time
    bn_groups: int = 1  # BatchNorm statistics over this many groups of the batch (recipes with per-GPU statistics)
    # For weights that `init_from` brings.  freeze_bn: which BatchNorms use their running statistics and leave them as
    # they are, while their scales and biases learn: "none", those of the "trunk" or "all".  freeze_stages: the stem and
    # so many stages of the trunk learn nothing, their BatchNorms' statistics neither; 0: all learn
    freeze_bn: str = "none"
    freeze_stages: int = 0
    options: dict = dataclasses.field(default_factory=dict)  # fields of the model's own config, e.g. width


@_only_its_fields
@dataclasses.dataclass
class SplitConfig:
    """One split of a data set: a folder of images and a COCO instances file."""

    images: str = ""  # folder
    annotations: str = ""  # COCO instances JSON


@_only_its_fields
@dataclasses.dataclass
class DataConfig:
    """Where images and boxes come from, and how they reach the device."""

    # "coco": folders and JSON below; "tfds": a prepared TensorFlow data set; "kitti": KITTI's folders, with 3D boxes
    source: str = "coco"
    train: SplitConfig = dataclasses.field(default_factory=SplitConfig)
    val: SplitConfig = dataclasses.field(default_factory=SplitConfig)
    tfds_name: str = "coco/2017"
    tfds_dir: str = ""  # "": TensorFlow Datasets' own default
    tfds_train: str = "train"
    tfds_val: str = "validation"
    kitti_dir: str = ""  # folder that holds ImageSets, and training with image_2, label_2 and calib
    kitti_train: str = "train"  # names of files of ImageSets, without .txt
    kitti_val: str = "val"  # "": no validation split
    # KITTI's types that are classes, in their order, here that of the released models.  Van and Truck are regions to
    # ignore of Car, Person_sitting of Pedestrian, unless they are named too; DontCare is one of all classes; all other
    # types are left out
    kitti_classes: tuple = ("Pedestrian", "Car", "Cyclist")
    canvas: int = 640  # side of the uint8 canvas an image is decoded to; larger images are shrunk to fit
    max_boxes: int = 128  # boxes of an image beyond this many are dropped, and counted
    # crowd boxes (iscrowd: 1): "ignore": not trained on, as in mmdetection; "train": treated as any other box, as in
    # the authors' programs
    crowds: str = "ignore"
    empty_images: str = "keep"  # training images without an object to learn from: "keep" or "drop"
    # Images with a class that fewer than this share of the images have are shown more often, sqrt(threshold / share)
    # times an epoch, as LVIS's recipes with 0.001; 0: all alike.  `epochs` count images, so the steps stay the same
    repeat_threshold: float = 0.0
    # Models of keypoints: the pairs that a mirror exchanges, e.g. "top_left:top_right,bottom_left:bottom_right"; "": by
    # left and right in their names; "none": none.  A checkpoint keeps those it was trained with
    mirror_pairs: str = ""
    # Models of keypoints: the constants of COCO's object keypoint similarity, one for each, which evaluation uses; ():
    # COCO's where the keypoints are its 17 of a person, else kpjax.metrics.coco.UNIFORM_SIGMA
    sigmas: tuple = ()
    # Images whose EXIF orientation says that they are shown turned: "size": turned where only the turned image has the
    # annotated width and height, else used as stored; "apply": turned; "ignore": used as stored
    exif: str = "size"
    bad_images: str = "stop"  # "stop" or "skip" (an unreadable image becomes an empty one, and is counted)
    threads: int = 0  # decoding threads; 0: one for each core
    prefetch: int = 2  # batches ready ahead of the device


@_only_its_fields
@dataclasses.dataclass
class AugmentConfig:
    """What happens to an image on its way into the training step (on the device)."""

    # "crop": random centre and scale of the image's longer side, as CenterNet; "window": the same of the input's own
    # size, as CornerNet; "shift": centre and scale jittered; "patch": a window of any shape in which all boxes keep a
    # part of themselves, of an image that may be shrunk first, as SSD; "object": a window around an object, of an image
    # resized so that the object gets a random size, as CornerNet-Saccade; "none": whole image
    kind: str = "crop"
    height: int = 512
    width: int = 512
    # Mixed scales of training: a step's width is one of these, drawn for each step, and its height in proportion; each
    # is a program that is compiled before the first step.  (): always `width`
    sizes: tuple = ()
    scales: tuple = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3)  # object: of images without an object
    border: int = 128  # crop and window: the centre stays this many image pixels from the edge (halved until it fits)
    shift: float = 0.1  # shift: standard deviation of the centre's move, in units of `shift_unit`
    shift_unit: str = "longer"  # shift: of the image's "longer" side, or along each axis of its own "side"
    shift_probability: float = 1.0  # shift: how often an image is moved and scaled; else it is seen whole
    scale: float = 0.4  # shift: standard deviation of the scale
    expand: float = 4.0  # patch: half of the images are first put on a canvas up to this many times as large
    clip_boxes: bool = False  # cut boxes to the crop and drop those whose centre is outside, as mmdetection does
    flip: float = 0.5
    color: float = 0.4  # brightness, contrast and saturation by 1 + uniform(-color, color), in random order
    lighting: float = 0.1  # standard deviation of the PCA noise
    photometric: bool = False  # mmdetection's brightness, contrast, saturation, hue and channel order instead
    # YOLO's jitter: the hue turned by up to this part of the circle, saturation and value times 1 + uniform(-x, x)
    hue: float = 0.0
    saturation: float = 0.0
    value: float = 0.0
    grey: float = 0.0  # how often an input is made grey
    # How often an input is a mosaic: four images of the batch, each in a tile of it; see kpjax.data.mosaic
    mosaic: float = 0.0
    # Least and greatest size of the images in a mosaic, log-uniform; at 1 an image would fill the whole input
    mosaic_scale_range: tuple = (0.5, 1.5)
    # How often objects of another image of the batch are put over an input, as boxes; see kpjax.data.occlusion
    copy_paste: float = 0.0
    mosaic_until: float = 1.0  # the fraction of the run after which mosaic and copy_paste are off


@_only_its_fields
@dataclasses.dataclass
class OptimConfig:
    """Optimiser, learning rate and what limits a step."""

    name: str = "adam"  # "adam", "adamw", "muon" or "sgd"
    lr: float = 1.25e-4
    momentum: float = 0.9  # sgd
    # sgd and adam: added to the gradient (L2), as PyTorch's optimisers do; adamw and muon: decoupled, of kernels alone
    weight_decay: float = 0.0
    # "step": times `gamma` at each of `drops`; "cosine": to `final_lr` at the last step; "wsd" (warm-up, stable,
    # decay): lr up to the fraction `hold` of the run, then in a straight line to `final_lr` at the last step
    schedule: str = "step"
    drops: tuple = ()  # fractions of the run, e.g. (90 / 140, 120 / 140)
    gamma: float = 0.1
    final_lr: float = 0.0  # cosine and wsd: the rate after the last step as a fraction of lr
    hold: float = 0.0  # wsd
    warmup_steps: int = 0
    warmup_start: float = 0.0  # the first step's rate as a fraction of lr
    clip: float = 0.0  # largest global gradient norm; 0: none
    ema: float = 0.0  # decay of the parameters' moving average, which is then evaluated; 0: off
    ema_tau: float = 0.0  # that decay rises with the steps, as ema * (1 - exp(-step / ema_tau)); 0: ema from the start
    accumulate: int = 1  # micro-batches a step
    # How lr and warmup_steps follow the batch: "none": not at all; "linear": in proportion to batch / lr_batch, see
    # kpjax.training.optimizer.scaled.  `epochs` need no change; `steps` are used as given: for the same number of
    # epochs set them to the recipe's steps * lr_batch / batch
    scale_lr: str = "none"
    lr_batch: int = 0  # images a step that lr and warmup_steps are meant for: the recipe's batch
    scale_warmup: int = 1000  # fewest warm-up steps where scale_lr raises the rate
    offset_lr: float = 1.0  # the rate of the convolutions that predict deformable ones' offsets, as a fraction of lr
    # The rate of biases, as a factor of lr, and whether they decay.  As in mmdetection 1, the biases of BatchNorms
    # whose own name is bn, bn1, ... do not count among them; those of other names, such as downsample_bn, do
    bias_lr: float = 1.0
    bias_decay: bool = True
    norm_decay: bool = True  # whether scales and biases of BatchNorms decay (sgd, adam)
    trunk_lr: float = 1.0  # the rate of the trunk, which is all but neck and heads, as a fraction of lr


@_only_its_fields
@dataclasses.dataclass
class EvalConfig:
    """How a split is evaluated."""

    resolution: str = "keep"  # "keep": each image's own size, padded; "fixed": warped to the training size
    max_side: int = 0  # keep only: larger images are shrunk to this side; 0: never
    batch: int = 8
    preset: str = "na"  # the published test protocols: "na", "flip", "ms"; "first": of two looks the first alone
    nms: str = ""  # soft-NMS: "": the model's own; "hard", "linear", "gaussian" or "none"
    every: int = 0  # evaluate each so many training steps; 0: only at the end
    top_k: int = 100  # most detections of a view, and peaks of each point; see `kpjax.Predictor`
    images: int = 0  # only the first so many images; 0: all
    # Results with this score or less are left out, as some published programs do (ddd's peak_thresh)
    score_threshold: float = 0.0
    max_canvases: int = 0  # most canvas sizes a scale: fewer programs, slightly different detections; 0: no limit


@_only_its_fields
@dataclasses.dataclass
class CheckpointConfig:
    """What is kept on disk."""

    every: int = 1000  # steps
    keep: int = 2  # the newest so many; the best by AP is kept beside them


@_only_its_fields
@dataclasses.dataclass
class ShardingConfig:
    """How the devices are laid out."""

    fsdp: int = 1  # devices that share one copy of the parameters


@_only_its_fields
@dataclasses.dataclass
class Config:
    """Everything a run depends on.  See the groups above for each field."""

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    sharding: ShardingConfig = dataclasses.field(default_factory=ShardingConfig)
    batch: int = 32  # images a step, over all devices and micro-batches
    steps: int = 0  # give one of steps and epochs
    epochs: float = 0.0
    seed: int = 0
    log_every: int = 10
    deterministic: bool = False  # GPU: bitwise repeatable operations, slower
    init_from: str = (
        ""  # weights to start from: an ImageNet ResNet or DLA file, a kpjax checkpoint, a released detector's file
    )

    def check(self) -> "Config":
        """Return self, or raise ConfigError with one line that names the key."""
        check_types(self, "config")
        check_values(self)
        return self


def unknown_key(name: str, *paths: str) -> str:
    """What is wrong with a setting `name` of a group that has none, and the nearest one.

    paths: where the group stands, "config.optim"; both of the splits, which are alike.
    """
    path = paths[0]
    keys = list(_keys(Config))
    own = [key for key in keys if key.rpartition(".")[0] == path]
    initials = "".join(word[0] for word in name.split("_") if word)  # learning_rate: lr
    near = (
        [key for key in own if key.rpartition(".")[2] == initials]
        or [key for key in keys if key.rpartition(".")[2] == name]  # config.lr: config.optim.lr
        or difflib.get_close_matches(f"{path}.{name}", keys, n=1, cutoff=0.9)  # config.eval_every: config.eval.every
        or own
        or keys
    )
    best = difflib.get_close_matches(f"{path}.{name}", near, n=1, cutoff=0.0)
    return f"{' or '.join(paths)} has no key {name!r}; did you mean {best[0]}?"


def recipe(name: str) -> Config:
    """The configuration of configs/NAME.py, for a recipe that starts from another one.

    The file is that of this checkout, or of the installed wheel (kpjax.recipes); neither the current folder nor the
    place of the calling file matters.  Raises ConfigError where it does not exist.
    """
    return runpy.run_path(str(recipes.named(name)))["get_config"]()


def coco2017(config: Config, root: str = "data/coco", *, keypoints: bool = False) -> None:
    """Set the data of `config` to COCO 2017 as it is distributed: train2017, val2017 and annotations in `root`.

    keypoints: the annotations of persons with their joints, instead of all instances.
    """
    kind = "person_keypoints" if keypoints else "instances"
    for split, name in ((config.data.train, "train2017"), (config.data.val, "val2017")):
        split.images = f"{root}/{name}"
        split.annotations = f"{root}/annotations/{kind}_{name}.json"


# Keys that a config.json of an older version may hold -> what they are called now, both by their full names, e.g.
# {"config.eval.canvases": "config.eval.max_canvases"}.  A key that is new since has its default when an older file is
# read; one that is gone is an error, but for those of GONE.  Applied to every config.json: of a work directory, a
# training checkpoint, an inference checkpoint.
RENAMED: dict[str, str] = {}
# Keys that are gone -> the value with which they had no effect.  An older file may hold them with this value.
GONE: dict[str, Any] = {"config.augment.erase": 0.0, "config.augment.scale_range": [0.1, 2.0]}


def to_json(config: Config) -> str:
    """The configuration as indented JSON; `from_json` reads it back."""
    return json.dumps(dataclasses.asdict(config), indent=1, sort_keys=True)


def from_json(text: str) -> Config:
    """Read what `to_json` of this version or an older one wrote (see RENAMED and GONE).

    Raises ConfigError where a key is unknown or a value of another type.
    """
    values = json.loads(text)
    for old, new in RENAMED.items():
        _rename(values, old.split(".")[1:], new.split(".")[1:])
    for old, value in GONE.items():
        _drop(values, old.split(".")[1:], value)
    config = _build(Config, values, "config")
    check_types(config, "config")
    return config


def differences(old: Config, new: Config) -> list[str]:
    """The keys whose values differ, as lines `config.optim.lr: 0.1 -> 0.2`, in the order of the fields."""
    before, after = flat(old), flat(new)
    keys = list(dict.fromkeys([*before, *after]))
    return [f"{k}: {before.get(k)!r} -> {after.get(k)!r}" for k in keys if before.get(k) != after.get(k)]


def flat(config: Config) -> dict[str, Any]:
    """Every setting by its key, "config.optim.lr": 0.1, tuples as lists."""
    return _flatten(dataclasses.asdict(config), "config")


def shared(config: Config) -> dict[str, Any]:
    """The settings that must be equal in all processes of a run: all but this host's data paths and threads."""
    paths = ("train.images", "train.annotations", "val.images", "val.annotations", "tfds_dir", "kitti_dir")
    own = (*paths, "threads", "prefetch")
    return {key: value for key, value in flat(config).items() if key.removeprefix("config.data.") not in own}


def _keys(kind: Any, path: str = "config") -> dict[str, Any]:
    """The names of all settings and groups below `path` -> their types, "config.optim": OptimConfig."""
    found = {}
    for name, hint in get_type_hints(kind).items():
        found[f"{path}.{name}"] = hint
        if dataclasses.is_dataclass(hint):
            found |= _keys(hint, f"{path}.{name}")
    return found


def _paths(kind: type) -> list[str]:
    """Where groups of a kind stand among the settings: ["config.optim"]."""
    return [path for path, hint in ({"config": Config} | _keys(Config)).items() if hint is kind]


def _flatten(tree: dict[str, Any], prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            found |= _flatten(value, f"{prefix}.{key}")
        else:  # JSON has no tuples
            found[f"{prefix}.{key}"] = list(value) if isinstance(value, tuple) else value
    return found


def _rename(values: dict[str, Any], old: list[str], new: list[str]) -> None:
    """Move a value of nested groups from its old key to its new one, if the old one is present."""
    node: Any = values
    for name in old[:-1]:
        node = node.get(name) if isinstance(node, dict) else None
    if not isinstance(node, dict) or old[-1] not in node:
        return
    value = node.pop(old[-1])
    node = values
    for name in new[:-1]:
        node = node.setdefault(name, {})
    node.setdefault(new[-1], value)


def _drop(values: dict[str, Any], key: list[str], value: Any) -> None:
    """Remove a key of nested groups if it has this value."""
    node: Any = values
    for name in key[:-1]:
        node = node.get(name) if isinstance(node, dict) else None
    if isinstance(node, dict) and node.get(key[-1]) == value:
        del node[key[-1]]


def _build(kind: type, values: dict[str, Any], path: str) -> Any:
    hints = get_type_hints(kind)
    if not isinstance(values, dict):
        raise ConfigError(f"{path} is {values!r}; it must be a group of settings")
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ConfigError(f"{path}.{unknown[0]} is not a setting of this version")
    built = {}
    for key, value in values.items():
        if dataclasses.is_dataclass(hints[key]):
            value = _build(hints[key], value, f"{path}.{key}")  # type: ignore[arg-type]
        elif isinstance(value, list):
            value = tuple(value)
        built[key] = value
    return kind(**built)
