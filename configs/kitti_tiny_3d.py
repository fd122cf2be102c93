"""Overfit a CenterNet-ResNet-18 for 3D boxes on 50 frames of KITTI: a check of depth, size, orientation and cameras.

    python train.py --config configs/kitti_tiny_3d.py --workdir runs/kitti_tiny_3d \\
        --config.data.kitti_dir=DATA/kitti_tiny

DATA/kitti_tiny has KITTI's layout, with ImageSets/train.txt and val.txt.  The network is half as wide as the released
one and ends at stride 16; images are seen whole at half resolution.  It is evaluated on the training frames themselves:
AP says how well they were memorised.  `eval.py --config.data.kitti_val=val` measures on frames that it has not seen.
"""

from kpjax.config import Config


def get_config() -> Config:
    config = Config(batch=4, steps=3000)
    config.model.name = "centernet_r18_3d"
    config.model.options = {
        "width": 32,
        "deconv": (64, 64),
        "head_channels": 32,
        "wh_as_point": False,
        "wh_weight": 0.3,
        "depth_weight": 2.0,
    }
    config.data.source = "kitti"
    config.data.kitti_dir = "data/kitti_tiny"
    config.data.kitti_val = "train"
    config.data.canvas = 1248
    config.data.max_boxes = 20
    config.augment.kind = "none"
    config.augment.height = 192
    config.augment.width = 640
    config.augment.flip = 0.0
    config.augment.color = 0.0
    config.augment.lighting = 0.0
    config.optim.lr = 1e-3
    config.optim.lr_batch = 4
    config.optim.drops = (0.85,)
    config.optim.warmup_steps = 50
    config.optim.ema = 0.995
    config.eval.resolution = "fixed"
    config.eval.score_threshold = 0.05
    config.eval.every = 1000
    config.checkpoint.every = 300
    return config
