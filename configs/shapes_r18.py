"""The demo: a small CenterNet-ResNet-18 on generated shapes, minutes on two CPU cores (`make demo`).

    python -m kpjax shapes --out runs/shapes_data
    python train.py --config configs/shapes_r18.py --workdir runs/shapes \\
        --config.data.train.images runs/shapes_data/train \\
        --config.data.train.annotations runs/shapes_data/annotations/instances_train.json \\
        --config.data.val.images runs/shapes_data/val \\
        --config.data.val.annotations runs/shapes_data/annotations/instances_val.json
"""

from kpjax.config import Config


def get_config() -> Config:
    config = Config(batch=16, steps=1200)
    config.model.name = "centernet_r18"
    config.model.options = {"width": 16, "deconv": (32, 32, 32), "head_channels": 32}
    config.data.canvas = 128
    config.data.max_boxes = 8
    config.augment.kind = "shift"
    config.augment.shift = 0.05
    config.augment.scale = 0.1
    config.augment.height = config.augment.width = 128
    config.optim.lr = 2e-3
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 50
    config.eval.resolution = "fixed"
    config.eval.batch = 32
    config.checkpoint.every = 400
    config.log_every = 20
    return config
