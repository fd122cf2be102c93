"""The demo with a small triplet CenterNet on generated shapes, minutes on two CPU cores (`make demo MODEL=triplet`).

    python -m kpjax shapes --out runs/shapes_data
    python train.py --config configs/shapes_triplet.py --workdir runs/shapes_triplet \\
        --config.data.train.images=runs/shapes_data/train \\
        --config.data.train.annotations=runs/shapes_data/annotations/instances_train.json \\
        --config.data.val.images=runs/shapes_data/val \\
        --config.data.val.annotations=runs/shapes_data/annotations/instances_val.json

One hourglass of three levels, one residual block a path, an eighth of the released width.
Inputs are 127x127: an hourglass wants sides of 2^n less 1.
"""

from kpjax.config import Config


def get_config() -> Config:
    config = Config(batch=8, steps=2000)
    config.model.name = "triplet_hg52"
    config.model.options = {
        "features": (32, 32, 48, 48),
        "blocks": (1, 1, 1, 1),
        "stem": 24,
        "stacks": 1,
        "branch": 24,
        "head_channels": 32,
    }
    config.data.canvas = 128
    config.data.max_boxes = 8
    config.augment.kind = "shift"
    config.augment.shift = 0.05
    config.augment.scale = 0.1
    config.augment.color = 0.0
    config.augment.lighting = 0.0
    config.augment.height = config.augment.width = 127
    config.optim.lr = 2e-3
    config.optim.lr_batch = 8
    config.optim.drops = (0.85,)
    config.optim.warmup_steps = 50
    config.optim.ema = 0.995
    config.eval.resolution = "fixed"
    config.eval.batch = 32
    config.checkpoint.every = 500
    config.log_every = 50
    return config
