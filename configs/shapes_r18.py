"""The demo: a small CenterNet-ResNet-18 on generated shapes, minutes on two CPU cores (`make demo`).

    python -m kpjax shapes --out runs/shapes_data
    python train.py --config configs/shapes_r18.py --workdir runs/shapes \\
        --config.data.train.images=runs/shapes_data/train \\
        --config.data.train.annotations=runs/shapes_data/annotations/instances_train.json \\
        --config.data.val.images=runs/shapes_data/val \\
        --config.data.val.annotations=runs/shapes_data/annotations/instances_val.json

Half the released width and a trunk that ends at stride 16: a map of 4x4 cells, which stride 32 leaves of 128
pixels, is too coarse for six objects, and learns several times more slowly.  Shapes have every colour
already, so there is no colour jitter.
"""

from kpjax.config import Config


def get_config() -> Config:
    config = Config(batch=8, steps=1800)
    config.model.name = "centernet_r18"
    config.model.options = {"width": 32, "deconv": (64, 48), "head_channels": 32, "wh_weight": 0.2}
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
    config.optim.drops = (0.85,)
    config.optim.warmup_steps = 50
    config.optim.ema = 0.995
    config.eval.resolution = "fixed"
    config.eval.batch = 32
    config.checkpoint.every = 500
    config.log_every = 50
    return config
