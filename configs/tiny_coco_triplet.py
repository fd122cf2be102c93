"""Overfit a small triplet CenterNet on a few real COCO images: a check of corners, centres, scales and classes.

    python train.py --config configs/tiny_coco_triplet.py --workdir runs/tiny_triplet \\
        --config.data.train.images=DATA/tiny_coco/train2017 \\
        --config.data.train.annotations=DATA/tiny_coco/annotations/instances_train2017.json \\
        --config.data.val.images=DATA/tiny_coco/train2017 \\
        --config.data.val.annotations=DATA/tiny_coco/annotations/instances_train2017.json

It is evaluated on the training images themselves: AP says how well they were memorised, and nothing about new
ones.  Images are seen whole at 255x255, never mirrored.  docs/recipes.md has what it reached on the first 8
images.
"""

from kpjax.config import Config, recipe


def get_config() -> Config:
    config = recipe("tiny_coco_cornernet")
    config.model.name = "triplet_hg52"
    return config
