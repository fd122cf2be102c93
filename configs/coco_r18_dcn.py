"""CenterNet-ResNet-18 with deformable convolution on COCO: xingyizhou's resdcn_18 (Objects as Points).

    python train.py --config configs/coco_r18_dcn.py --workdir runs/coco_r18_dcn --config.init_from=resnet18.pth

data/coco holds train2017, val2017 and annotations as COCO distributes them (or a link to them); resnet18.pth
is torchvision's or timm's ImageNet checkpoint, which the original starts from as well.

Batch 114 on 4 GPUs, Adam 5e-4 dropped by 10 after epochs 90 and 120 of 140; 28 hours for its authors.  The
114 images were divided unevenly among the GPUs (18, 32, 32, 32), each with BatchNorm statistics of its own;
here they are the whole batch's.  On 4 or 8 devices take --config.batch=112.

Another batch: --config.optim.scale_lr=linear lets rate and warm-up follow it; unverified (docs/recipes.md).

Published on val2017: AP 28.1, 30.0 with flip, 33.2 with flip and five scales.  Not trained here.
"""

from kpjax.config import Config, recipe


def get_config() -> Config:
    config = recipe("coco_r18")
    config.model.name = "centernet_r18_dcn"
    return config
