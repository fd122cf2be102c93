"""Settings of CornerNet-Saccade: a corner detector that looks twice."""

from __future__ import annotations

import dataclasses
from typing import Any

from kpjax.detectors.corner_config import PAD_BGR, STRIDE, CornerNetConfig, Rules, with_options
from kpjax.errors import ConfigError
from kpjax.ops.nms import SoftNms

# What follows is the released model's, in pixels of its input of 255 pixels; see `SaccadeConfig.pixels`.
RELEASED_VIEW = 255
SIZES = (96.0, 32.0)  # longer sides: an object is large above the first, small up to the second, medium between them
FIRST = (192.0, 255.0)  # longer sides of the whole image in the first look's two copies
CLOSE = (192.0, 64.0, 24.0)  # longer sides that a large, a medium and a small object found get in the second look
NEAR = 16.0  # of two places as near as this one is looked at
LEAST = 16.0  # the longer side of an object that is learnt

FACTORS = (1.0, 2.0, 4.0)  # how much closer the second look is at what each attention map marks, the coarsest first
LARGEST_SCALE = 4.0  # nothing is shown more than so many times as large as in the image
FIRST_SCORE = 0.3  # least score of the first look's boxes
SURE_SCORE = 0.5  # boxes of the first look above it are looked at again

RULES = Rules(overlap=0.5, no_border=True, nms=SoftNms(sigma=0.7), stale_rows=False)


@dataclasses.dataclass(frozen=True)
class SaccadeConfig(CornerNetConfig):
    """The released model, or a variation of it.

    Beside what a corner detector has (`merge_exponent` and `fire` are no options):
    view: side of the square that the network sees, in training and at test time.  The objects' sizes that attention is
        about are parts of it.
    attention: least score of an attention map's cell that is looked at.
    crops: most places of an image that the second look sees.  crops_at_once: of these, over all images of a device's
        batch, how many the network sees at once; it divides `crops`.
    """

    features: tuple[int, ...] = (256, 384, 384, 512)
    blocks: tuple[int, ...] = (1, 1, 1, 1)
    stacks: int = 3
    rules: Rules = RULES
    import_rules: str = "cornernet_saccade"
    corners: int = 12
    pairs: int = 12
    distance: float = 0.3
    view: int = RELEASED_VIEW
    attention: float = 0.3
    crops: int = 30
    crops_at_once: int = 10

    def pixels(self, released: float) -> float:
        """A length of the released model's input in the input of this one."""
        return released * self.view / RELEASED_VIEW


# An image lies in the top left corner of its canvas, which the network does not see: its windows are cut out of it.
RELEASED = SaccadeConfig(preprocess=dataclasses.replace(PAD_BGR, centred=False))


def saccade_options(name: str, released: SaccadeConfig, options: dict[str, Any]) -> SaccadeConfig:
    """`released` with the options put in, and checked."""
    config = with_options(name, released, options, fixed=frozenset({"merge_exponent", "fire"}))
    assert isinstance(config, SaccadeConfig)
    if len(config.features) != len(FACTORS) + 1:
        raise ConfigError(
            f"model {name}: features is {config.features}; give {len(FACTORS) + 1} levels, whose upper "
            f"{len(FACTORS)} have an attention map each"
        )
    unit = STRIDE * 2 ** len(FACTORS)
    if config.view < unit - 1 or (config.view + 1) % unit:
        raise ConfigError(f"model {name}: view is {config.view}; it must be a multiple of {unit}, less 1")
    if not 0 <= config.attention < 1:
        raise ConfigError(f"model {name}: attention is {config.attention}; it must be at least 0 and below 1")
    if config.crops < 1 or config.crops_at_once < 1 or config.crops % config.crops_at_once:
        raise ConfigError(
            f"model {name}: crops is {config.crops} and crops_at_once is {config.crops_at_once}; both must be at "
            "least 1, and the second divide the first"
        )
    return config
