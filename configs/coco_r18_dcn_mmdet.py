"""mmdetection's CenterNet-ResNet-18 with deformable convolution (centernet_r18-dcnv2) on COCO.

    python train.py --config configs/coco_r18_dcn_mmdet.py --workdir runs/coco_r18_dcn_mmdet \\
        --config.init_from=resnet18.pth

data/coco holds train2017, val2017 and annotations as COCO distributes them (or a link to them); resnet18.pth
is torchvision's ImageNet checkpoint, which the original starts from as well.

8 GPUs of 16 images with BatchNorm statistics of their own, SGD 0.02 with momentum 0.9 and weight decay 1e-4,
linear warm-up over 1000 steps, gradients clipped to a norm of 35, drops by 10 after epochs 90 and 120 of 140
(28 passes over a set repeated five times). configs/coco_r18_mmdet.py lists what differs from mmdetection's
training.

Another batch: --config.optim.scale_lr=linear lets rate and warm-up follow it; unverified (docs/recipes.md).

Published on val2017 (mmdetection's model zoo): AP 29.5, 30.9 with flip.  Not trained here.
"""

from kpjax.config import Config, recipe


def get_config() -> Config:
    config = recipe("coco_r18_mmdet")
    config.model.name = "centernet_r18_dcn_mmdet"
    return config
