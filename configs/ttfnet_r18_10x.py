"""TTFNet-ResNet-18 on COCO, the 120 epochs of the 10x schedule: ZJULearning's ttfnet_r18_aug_10x.

    python train.py --config configs/ttfnet_r18_10x.py --workdir runs/ttfnet_r18_10x --config.init_from=resnet18.pth

As ttfnet_r18_1x.py, on 8 GPUs, with the rate dropped by 10 after epochs 90 and 110 of 120, and with SSD's augmentation:
colours, half of the images on a canvas up to four times as large, windows in which every box keeps a drawn overlap.
Pixels are neither rounded nor clipped between, as in the original.

Another batch: --config.optim.scale_lr=linear lets rate and warm-up follow it; unverified (docs/recipes.md).

Published on val2017: AP 31.8; 30.3 from random weights, without --config.init_from.  Not trained here.
"""

from kpjax.config import Config, recipe


def get_config() -> Config:
    config = recipe("ttfnet_r18_1x")
    config.epochs = 120.0
    config.augment.kind = "patch"
    config.augment.photometric = True
    return config
