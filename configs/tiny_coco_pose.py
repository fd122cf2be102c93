"""Overfit a CenterNet-ResNet-18 for pose on 50 real COCO images: a check of joints, masks and mirrored pairs.

    python train.py --config configs/tiny_coco_pose.py --workdir runs/tiny_pose \\
        --config.data.train.images=DATA/tiny_coco/train2017 \\
        --config.data.train.annotations=DATA/tiny_coco/annotations/person_keypoints_train2017.json \\
        --config.data.val.images=DATA/tiny_coco/train2017 \\
        --config.data.val.annotations=DATA/tiny_coco/annotations/person_keypoints_train2017.json

It is evaluated on the training images themselves: AP says how well they were memorised, and nothing about new
ones.  The network is half as wide as the released one and ends at stride 16; images are seen whole at
256x256, mirrored half of the time: a point that did not change its side with the mirror could not be learnt.
"""

from kpjax.config import Config


def get_config() -> Config:
    config = Config(batch=4, steps=3600)
    config.model.name = "centernet_r18_pose"
    config.model.options = {"width": 32, "deconv": (64, 64), "head_channels": 32, "wh_weight": 0.2}
    config.data.canvas = 640
    config.data.max_boxes = 32
    config.data.empty_images = "drop"
    config.augment.kind = "none"
    config.augment.color = 0.0
    config.augment.lighting = 0.0
    config.augment.height = config.augment.width = 256
    config.optim.lr = 1e-3
    config.optim.lr_batch = 4
    config.optim.drops = (0.85,)
    config.optim.warmup_steps = 50
    config.optim.ema = 0.995
    config.eval.resolution = "fixed"
    config.eval.every = 600
    config.checkpoint.every = 300
    return config
