"""Human pose by CenterNet-Hourglass-104 on COCO, 150 epochs: xingyizhou's multi_pose (Objects as Points).

    python train.py --config configs/coco_pose_hg104_3x.py --workdir runs/coco_pose_hg104_3x \\
        --config.init_from=ctdet_coco_hg.pth

As coco_pose_hg104_1x.py, on 5 GPUs, with the rate dropped by 10 after epoch 130 of 150; 188 hours for its authors.

Another batch: --config.optim.scale_lr=linear lets rate and warm-up follow it; unverified (docs/recipes.md).

Published on val2017, with flip: keypoint AP 64.0.  Not trained here.
"""

from kpjax.config import Config, recipe


def get_config() -> Config:
    config = recipe("coco_pose_hg104_1x")
    config.epochs = 150.0
    config.optim.drops = (130 / 150,)
    return config
