"""Overfit a small CornerNet on a few real COCO images: a check of corners, embeddings, scales and classes.

    python train.py --config configs/tiny_coco_cornernet.py --workdir runs/tiny_cornernet \\
        --config.data.train.images=DATA/tiny_coco/train2017 \\
        --config.data.train.annotations=DATA/tiny_coco/annotations/instances_train2017.json \\
        --config.data.val.images=DATA/tiny_coco/train2017 \\
        --config.data.val.annotations=DATA/tiny_coco/annotations/instances_train2017.json

It is evaluated on the training images themselves: AP says how well they were memorised, and nothing about new
ones.  Images are seen whole at 255x255, never mirrored.  docs/recipes.md has what it reached on the first 8
images.
"""

from kpjax.config import Config


def get_config() -> Config:
    config = Config(batch=4, steps=1200)
    config.model.name = "cornernet_hg104"
    config.model.options = {
        "features": (32, 32, 48, 64),
        "blocks": (1, 1, 1, 1),
        "stem": 24,
        "stacks": 1,
        "branch": 24,
        "head_channels": 32,
    }
    config.data.canvas = 640
    config.data.max_boxes = 64
    config.augment.kind = "none"
    config.augment.flip = 0.0
    config.augment.color = 0.0
    config.augment.lighting = 0.0
    config.augment.height = config.augment.width = 255
    config.optim.lr = 2e-3
    config.optim.lr_batch = 4
    config.optim.drops = (0.8,)
    config.optim.warmup_steps = 50
    config.optim.ema = 0.99
    config.eval.resolution = "fixed"
    config.eval.every = 500
    config.checkpoint.every = 500
    config.log_every = 50
    return config
