"""The demo with a small CornerNet on generated shapes, minutes on two CPU cores (`make demo MODEL=cornernet`).

    python -m kpjax shapes --out runs/shapes_data
    python train.py --config configs/shapes_cornernet.py --workdir runs/shapes_cornernet \\
        --config.data.train.images=runs/shapes_data/train \\
        --config.data.train.annotations=runs/shapes_data/annotations/instances_train.json \\
        --config.data.val.images=runs/shapes_data/val \\
        --config.data.val.annotations=runs/shapes_data/annotations/instances_val.json

One hourglass of three levels, one residual block a path, an eighth of the released width.  Inputs are
127x127: an hourglass needs sides of 2^n - 1.
"""

from kpjax.config import Config, recipe


def get_config() -> Config:
    config = recipe("shapes_r18")
    config.steps = 2000
    config.model.name = "cornernet_hg104"
    config.model.options = {
        "features": (32, 32, 48, 48),
        "blocks": (1, 1, 1, 1),
        "stem": 24,
        "stacks": 1,
        "branch": 24,
        "head_channels": 32,
    }
    config.augment.height = config.augment.width = 127
    return config
