"""TTFNet-ResNet-18 on COCO, the 24 epochs of the 2x schedule: ZJULearning's ttfnet_r18_2x.

    python train.py --config configs/ttfnet_r18_2x.py --workdir runs/ttfnet_r18_2x --config.init_from=resnet18.pth

As ttfnet_r18_1x.py, on 8 GPUs, with the rate dropped by 10 after epochs 18 and 22 of 24; 3.6 hours for its authors.

Another batch: --config.optim.scale_lr=linear lets rate and warm-up follow it; unverified (docs/recipes.md).

Published on val2017: AP 28.1.  Not trained here.
"""

from kpjax.config import Config, recipe


def get_config() -> Config:
    config = recipe("ttfnet_r18_1x")
    config.epochs = 24.0
    return config
