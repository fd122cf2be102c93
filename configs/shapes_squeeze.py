"""The demo with a small CornerNet-Squeeze on generated shapes, minutes on two CPU cores (`make demo MODEL=squeeze`).

    python -m kpjax shapes --out runs/shapes_data
    python train.py --config configs/shapes_squeeze.py --workdir runs/shapes_squeeze \\
        --config.data.train.images=runs/shapes_data/train \\
        --config.data.train.annotations=runs/shapes_data/annotations/instances_train.json \\
        --config.data.val.images=runs/shapes_data/val \\
        --config.data.val.annotations=runs/shapes_data/annotations/instances_val.json

One hourglass of two levels, one fire module a path, a quarter of the released width.  Inputs are 127x127, maps 16x16:
cells of 8 pixels.
"""

from kpjax.config import Config, recipe


def get_config() -> Config:
    config = recipe("shapes_cornernet")
    config.model.name = "cornernet_squeeze"
    config.model.options |= {"features": (64, 64, 96), "blocks": (1, 1, 2), "head_channels": 64}
    return config
