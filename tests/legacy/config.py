"""The run that tests/legacy keeps: a CenterNet four channels wide on shapes of 64 pixels, in the current folder."""

from kpjax.config import Config


def get_config() -> Config:
    config = Config(batch=8, steps=1210)
    config.model.name = "centernet_r18"
    config.model.options = {"width": 4, "deconv": (8,), "head_channels": 8}
    for split, name in ((config.data.train, "train"), (config.data.val, "val")):
        split.images = f"shapes/{name}"
        split.annotations = f"shapes/annotations/instances_{name}.json"
    config.data.canvas = 64
    config.data.max_boxes = 8
    config.augment.kind = "shift"
    config.augment.shift = 0.05
    config.augment.scale = 0.1
    config.augment.color = config.augment.lighting = 0.0
    config.augment.height = config.augment.width = 64
    config.optim.lr = 4e-3
    config.optim.lr_batch = 8
    config.optim.warmup_steps = 20
    config.optim.ema = 0.9
    config.eval.resolution = "fixed"
    config.eval.every = 600
    config.checkpoint.every = 600
    config.checkpoint.keep = 1
    config.log_every = 100
    return config
