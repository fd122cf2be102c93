"""TTFNet-ResNet-34 on COCO, the 120 epochs of the 10x schedule: ZJULearning's ttfnet_r34_aug_10x.

    python train.py --config configs/ttfnet_r34_10x.py --workdir runs/ttfnet_r34_10x --config.init_from=resnet34.pth

As ttfnet_r18_10x.py, on 8 GPUs, with torchvision's ResNet-34.

Another batch: --config.optim.scale_lr=linear lets rate and warm-up follow it; unverified (docs/recipes.md).

Published on val2017: AP 35.3; 33.2 from random weights, without --config.init_from.  Not trained here.
"""

from kpjax.config import Config, recipe


def get_config() -> Config:
    config = recipe("ttfnet_r18_10x")
    config.model.name = "ttfnet_r34"
    return config
