"""TTFNet-DarkNet-53 on COCO, the 24 epochs of the 2x schedule: ZJULearning's ttfnet_d53_2x.

    python train.py --config configs/ttfnet_d53_2x.py --workdir runs/ttfnet_d53_2x --config.init_from=darknet53.pth

As ttfnet_r18_2x.py, on 8 GPUs of 12 images, SGD 0.015; 6.1 hours for its authors.  darknet53.pth is the
ImageNet checkpoint that comes with its authors' program.  Of DarkNet the original trains neither stem nor first
stage either, but their BatchNorms follow the batches, as here.

Another batch: --config.optim.scale_lr=linear lets rate and warm-up follow it; unverified (docs/recipes.md).

Published on val2017: AP 35.1.  Not trained here.
"""

from kpjax.config import Config, recipe


def get_config() -> Config:
    config = recipe("ttfnet_r18_2x")
    config.batch = 96
    config.model.name = "ttfnet_d53"
    config.optim.lr = 0.015
    config.optim.lr_batch = 96
    return config
