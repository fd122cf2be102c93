"""The demo with a small ExtremeNet on generated shapes, minutes on two CPU cores (`make demo MODEL=extreme`).

    python -m kpjax shapes --out runs/shapes_data
    python train.py --config configs/shapes_extreme.py --workdir runs/shapes_extreme \\
        --config.data.train.images=runs/shapes_data/train \\
        --config.data.train.annotations=runs/shapes_data/annotations/instances_train.json \\
        --config.data.val.images=runs/shapes_data/val \\
        --config.data.val.annotations=runs/shapes_data/annotations/instances_val.json

The shapes' polygons give the extreme points.  One hourglass of three levels, one residual block a path, an eighth of
the released width.  Inputs are 127x127: an hourglass needs sides of 2^n - 1.
"""

from kpjax.config import Config, recipe


def get_config() -> Config:
    config = recipe("shapes_cornernet")
    config.model.name = "extremenet_hg104"
    config.model.options = {key: value for key, value in config.model.options.items() if key != "branch"}
    return config
