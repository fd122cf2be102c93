"""The demo with a small CornerNet-Saccade on generated shapes, minutes on two CPU cores (`make demo MODEL=saccade`).

    python -m kpjax shapes --out runs/shapes_256 --size 256
    python train.py --config configs/shapes_saccade.py --workdir runs/shapes_saccade \\
        --config.data.train.images=runs/shapes_256/train \\
        --config.data.train.annotations=runs/shapes_256/annotations/instances_train.json \\
        --config.data.val.images=runs/shapes_256/val \\
        --config.data.val.annotations=runs/shapes_256/annotations/instances_val.json

Images of 256x256 pixels, of which the network sees 63x63: the first look has a quarter of an image's resolution, and
shapes of 8 to 32 pixels; the second one looks up to four times as close.  What it adds is the difference to
`eval.py --preset first`.  One hourglass of three levels, one residual block a path, an eighth of the released width.
So short a training leaves embeddings and attention less sure than the released model's: corners are paired up to the
distance that the loss pushes objects apart (1, not 0.3), and places are looked at from a score of 0.1 (not 0.3).
"""

from kpjax.config import AugmentConfig, Config, recipe


def get_config() -> Config:
    config = recipe("shapes_cornernet")
    config.batch, config.steps = 16, 4000
    config.model.name = "cornernet_saccade"
    config.model.options |= {"view": 63, "crops_at_once": 30, "embedding_images": 8}
    config.model.options |= {"distance": 1.0, "attention": 0.1}
    config.data.canvas = 256
    config.augment = AugmentConfig(kind="object", height=63, width=63, color=0.0, lighting=0.0)
    config.optim.lr_batch = 16
    config.eval.resolution = "keep"
    return config
