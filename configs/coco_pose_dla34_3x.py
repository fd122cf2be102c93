"""Human pose by CenterNet-DLA-34 on COCO, the 320 epochs of the 3x schedule: xingyizhou's multi_pose.

    python train.py --config configs/coco_pose_dla34_3x.py --workdir runs/coco_pose_dla34_3x \\
        --config.init_from=ctdet_coco_dla_2x.pth

As coco_pose_dla34_1x.py, on 8 GPUs, with the rate dropped by 10 after epochs 270 and 300 of 320; 70 hours for its
authors.

Another batch: --config.optim.scale_lr=linear lets rate and warm-up follow it; unverified (docs/recipes.md).

Published on val2017, with flip: keypoint AP 58.9.  Not trained here.
"""

from kpjax.config import Config, recipe


def get_config() -> Config:
    config = recipe("coco_pose_dla34_1x")
    config.epochs = 320.0
    config.optim.drops = (270 / 320, 300 / 320)
    return config
