"""Overfit a small CenterNet-DLA-34 with deformable convolution on eight real COCO images.

    python train.py --config configs/tiny_coco_dla34.py --workdir runs/tiny_dla34 \\
        --config.data.train.images=DATA/tiny_coco/train2017 \\
        --config.data.train.annotations=runs/tiny8.json \\
        --config.data.val.images=DATA/tiny_coco/train2017 \\
        --config.data.val.annotations=runs/tiny8.json

runs/tiny8.json is the training annotations cut down to the first eight images that have boxes;
docs/recipes.md has the lines that make it.  It is evaluated on the training images themselves: AP says how
well they were memorised, and nothing about new ones.  All of DLA-34's layers at half the released width;
images are seen whole at 256x256, without augmentation.
"""

from kpjax.config import Config


def get_config() -> Config:
    config = Config(batch=4, steps=1000)
    config.model.name = "centernet_dla34"
    config.model.options = {"width": 8, "head_channels": 32, "wh_weight": 0.2}
    config.data.canvas = 640
    config.data.max_boxes = 64
    config.augment.kind = "none"
    config.augment.flip = 0.0
    config.augment.color = 0.0
    config.augment.lighting = 0.0
    config.augment.height = config.augment.width = 256
    config.optim.lr = 1e-3
    config.optim.lr_batch = 4
    config.optim.offset_lr = 0.1
    config.optim.drops = (0.85,)
    config.optim.warmup_steps = 50
    config.optim.ema = 0.98
    config.eval.resolution = "fixed"
    config.checkpoint.every = 250
    return config
