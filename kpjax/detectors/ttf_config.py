"""TTFNet's released networks, and the options of its models."""

from __future__ import annotations

import dataclasses
from typing import Any

from kpjax.backbones.darknet import BLOCKS
from kpjax.backbones.resnet import STAGES
from kpjax.detectors.base import replace_options
from kpjax.errors import ConfigError
from kpjax.images.preprocess import IMAGENET_RGB, Preprocess
from kpjax.nn.convolution import PRECISIONS
from kpjax.ops import nms

REGIONS = ("gaussian", "box")
AREAS = ("log", "sqrt", "plain", "none")

# Both sides of an image are stretched to 512 pixels; what lies outside of it in training has the mean's colour.
STRETCHED = dataclasses.replace(IMAGENET_RGB, border="mean", centred=False, fills="both", one_canvas=(512, 512))


@dataclasses.dataclass(frozen=True)
class TTFConfig:
    """One released model, or a variation of it.

    backbone: "resnet" or "darknet", of `depth`; width: of its first stage (ResNet) or at full resolution (DarkNet).
    max_width: the features that no stage of a ResNet exceeds; 0: no bound.
    stages: of the trunk; 3 end at stride 16, for small images.  neck: channels of each step up, `planes` in the
    original; shortcuts: 3x3 convolutions of each step's shortcut.  The map's stride is 2^(stages + 1 - steps).
    dcn: deformable convolution in the neck, as all released ones; without it an ordinary one.
    heatmap_channels, heatmap_convs, sides_channels, sides_convs: of the heads' 3x3 convolutions.
    sides_scale: input pixels that a 1 of the sides' head stands for.
    class_specific_sides: four sides for each class (`wh_agnostic` false), each learnt from its class's objects alone.
    alpha, beta: sides of a Gaussian as a fraction of the box's, in the heatmap and in the region that learns the sides.
    region: that region is the "gaussian"'s window, or the "box" shrunk to `beta` (`wh_gaussian` false).
    area: how an object's area weighs it: "log", "sqrt", "plain" or "none".
    heatmap_weight, sides_weight: of the losses.  score_threshold: detections with this score or less are left out.
    nms: soft-NMS at test time: "" and "none": none, as published, or a method.
    dtype, precision, bn_groups, remat: see kpjax.config.
    """

    backbone: str = "resnet"
    depth: int = 18
    width: int = 64
    max_width: int = 0
    stages: int = 4
    neck: tuple[int, ...] = (256, 128, 64)
    shortcuts: tuple[int, ...] = (1, 2, 3)
    dcn: bool = True
    heatmap_channels: int = 128
    heatmap_convs: int = 2
    sides_channels: int = 64
    sides_convs: int = 1
    sides_scale: float = 16.0
    class_specific_sides: bool = False
    alpha: float = 0.54
    beta: float = 0.54
    region: str = "gaussian"
    area: str = "log"
    heatmap_weight: float = 1.0
    sides_weight: float = 5.0
    score_threshold: float = 0.01
    nms: str = ""
    preprocess: Preprocess = STRETCHED
    import_rules: str = "ttfnet_resnet"
    dtype: str = "float32"
    precision: str = "default"
    bn_groups: int = 1
    remat: bool = False

    @property
    def stride(self) -> int:
        """Input pixels a cell of the map."""
        return 2 ** (self.stages + 1 - len(self.neck))

    @property
    def multiple(self) -> int:
        """Sides of the input have to be multiples of the trunk's last stride: shortcuts are not cut."""
        return 2 ** (self.stages + 1)

    def map_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(h, w) of the output map for an input of (H, W)."""
        return size[0] // self.stride, size[1] // self.stride


R18 = TTFConfig()
R34 = TTFConfig(depth=34, sides_convs=2)
D53 = TTFConfig(backbone="darknet", depth=53, width=32, sides_convs=2, import_rules="ttfnet_darknet")


def with_options(name: str, released: TTFConfig, options: dict[str, Any]) -> TTFConfig:
    """`released` with the options put in and checked.  Lists (from JSON) become tuples.

    Raises ConfigError, one line, for an option that does not exist or a value that cannot work.
    """
    config: TTFConfig = replace_options(
        name,
        released,
        options,
        fixed={"backbone"},
        depth=tuple(BLOCKS if released.backbone == "darknet" else STAGES),
        region=REGIONS,
        area=AREAS,
        nms=("", "none", *nms.METHODS),
        dtype=("float32", "bfloat16"),
        precision=tuple(PRECISIONS),
    )
    if not 2 <= config.stages <= 4:
        raise ConfigError(f"model {name}: stages is {config.stages}; give 2, 3 or 4 (which ends at stride 32)")
    if not 1 <= len(config.neck) < config.stages or len(config.shortcuts) != len(config.neck):
        raise ConfigError(
            f"model {name}: neck is {config.neck} and shortcuts is {config.shortcuts} for {config.stages} stages; "
            f"give both the same number of steps, 1 to {config.stages - 1}"
        )
    counts = ("width", "heatmap_channels", "heatmap_convs", "sides_channels", "sides_convs", "bn_groups")
    for key in counts:
        if getattr(config, key) < 1:
            raise ConfigError(f"model {name}: {key} is {getattr(config, key)}; it must be at least 1")
    if min(*config.neck, *config.shortcuts) < 1:
        raise ConfigError(f"model {name}: neck and shortcuts must be at least 1 in each step")
    if config.max_width and (config.backbone != "resnet" or config.max_width < config.width):
        raise ConfigError(
            f"model {name}: max_width is {config.max_width}; it is for ResNets, and at least their width {config.width}"
        )
    for key in ("alpha", "beta"):
        if not 0 < getattr(config, key) <= 1:
            raise ConfigError(f"model {name}: {key} is {getattr(config, key)}; it must be above 0 and at most 1")
    for key, low, high in (("sides_scale", 1e-3, 1e6), ("heatmap_weight", 0, 1e6), ("sides_weight", 0, 1e6)):
        if not low <= getattr(config, key) <= high:
            raise ConfigError(f"model {name}: {key} is {getattr(config, key)}; it must be {low:g} to {high:g}")
    if not 0 <= config.score_threshold < 1:
        raise ConfigError(f"model {name}: score_threshold is {config.score_threshold}; it must be 0 to below 1")
    # No checkpoint was released without deformable convolution.
    return config if config.dcn else dataclasses.replace(config, import_rules="")
