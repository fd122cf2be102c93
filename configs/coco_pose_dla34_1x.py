"""Human pose by CenterNet-DLA-34 on COCO, the 140 epochs of the 1x schedule: xingyizhou's multi_pose.

    python train.py --config configs/coco_pose_dla34_1x.py --workdir runs/coco_pose_dla34_1x \\
        --config.init_from=ctdet_coco_dla_2x.pth

data/coco holds train2017, val2017 and annotations as COCO distributes them (or a link to them): here the
person_keypoints_*.json.  ctdet_coco_dla_2x.pth is the detector of boxes that the original starts from
(`python -m kpjax download --list`).  Its author later advised to train without it (xingyizhou#589), e.g. from
ucbdrive's dla34.pth.

Batch 128 on 8 GPUs, Adam 5e-4 dropped by 10 after epochs 90 and 120 of 140, on the 64,115 training images with
people; 30 hours for its authors.  Each GPU had BatchNorm statistics of its own, of 9 images on the first and 17
on the others; here they are of 8 groups of 16.

Another batch: --config.optim.scale_lr=linear lets rate and warm-up follow it; unverified (docs/recipes.md).

Published on val2017, with flip: keypoint AP 54.7.  Not trained here.
"""

from kpjax.config import Config, coco2017


def get_config() -> Config:
    config = Config(batch=128, epochs=140.0)
    config.model.name = "centernet_dla34_pose"
    config.model.num_classes = 1
    config.model.bn_groups = 8
    coco2017(config, keypoints=True)
    config.data.max_boxes = 32
    config.data.crowds = "train"
    config.data.empty_images = "drop"
    config.optim.lr = 5e-4
    config.optim.lr_batch = 128
    config.optim.drops = (90 / 140, 120 / 140)
    config.eval.preset = "flip"
    config.eval.every = 5000
    return config
