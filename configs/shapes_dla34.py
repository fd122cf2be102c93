"""A small CenterNet-DLA-34 with deformable convolution on the demo's shapes (`make demo MODEL=dla34`).

    python -m kpjax shapes --out runs/shapes_data
    python train.py --config configs/shapes_dla34.py --workdir runs/shapes_dla34 \\
        --config.data.train.images=runs/shapes_data/train \\
        --config.data.train.annotations=runs/shapes_data/annotations/instances_train.json \\
        --config.data.val.images=runs/shapes_data/val \\
        --config.data.val.annotations=runs/shapes_data/annotations/instances_val.json

All of DLA-34's layers at half the released width.  Shapes come in every colour, so that colour jitter
would add nothing.  Offsets learn at a tenth of the rate: where they learnt at the whole of it, AP was lower.
"""

from kpjax.config import Config


def get_config() -> Config:
    config = Config(batch=8, steps=2000)
    config.model.name = "centernet_dla34"
    config.model.options = {"width": 8, "head_channels": 32, "wh_weight": 0.2}
    config.data.canvas = 128
    config.data.max_boxes = 8
    config.augment.kind = "shift"
    config.augment.shift = 0.05
    config.augment.scale = 0.1
    config.augment.color = 0.0
    config.augment.lighting = 0.0
    config.augment.height = config.augment.width = 128
    config.optim.lr = 2e-3
    config.optim.lr_batch = 8
    config.optim.offset_lr = 0.1
    config.optim.drops = (0.85,)
    config.optim.warmup_steps = 50
    config.optim.ema = 0.995
    config.eval.resolution = "fixed"
    config.eval.batch = 32
    config.checkpoint.every = 500
    config.log_every = 50
    return config
