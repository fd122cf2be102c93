"""Human pose by CenterNet-Hourglass-104 on COCO, 50 epochs: xingyizhou's multi_pose (Objects as Points).

    python train.py --config configs/coco_pose_hg104_1x.py --workdir runs/coco_pose_hg104_1x \\
        --config.init_from=ctdet_coco_hg.pth

data/coco holds train2017, val2017 and annotations as COCO distributes them (or a link to them): here the
person_keypoints_*.json.  ctdet_coco_hg.pth is the detector of boxes that the original starts from
(`python -m kpjax download --list`).

50 epochs of 24 images on 5 GPUs (4 on the first, 5 on the others), on the 64,115 training images with people,
Adam 2.5e-4 dropped by 10 after epoch 40; 62 hours for its authors.  BatchNorm statistics are those of 4 groups of 6
here.

Another batch: --config.optim.scale_lr=linear lets rate and warm-up follow it; unverified (docs/recipes.md).

Published on val2017, with flip: keypoint AP 58.7.  Not trained here.
"""

from kpjax.config import Config, coco2017


def get_config() -> Config:
    config = Config(batch=24, epochs=50.0)
    config.model.name = "centernet_hg104_pose"
    config.model.num_classes = 1
    config.model.bn_groups = 4
    coco2017(config, keypoints=True)
    config.data.max_boxes = 32
    config.data.crowds = "train"
    config.data.empty_images = "drop"
    config.optim.lr = 2.5e-4
    config.optim.lr_batch = 24
    config.optim.drops = (40 / 50,)
    config.eval.preset = "flip"
    config.eval.every = 10_000
    return config
