"""TTFNet-ResNet-34 on COCO, the 24 epochs of the 2x schedule: ZJULearning's ttfnet_r34_2x.

    python train.py --config configs/ttfnet_r34_2x.py --workdir runs/ttfnet_r34_2x --config.init_from=resnet34.pth

As ttfnet_r18_2x.py, on 8 GPUs, with torchvision's ResNet-34; 4.1 hours for its authors.

Another batch: --config.optim.scale_lr=linear lets rate and warm-up follow it; unverified (docs/recipes.md).

Published on val2017: AP 31.3.  Not trained here.
"""

from kpjax.config import Config, recipe


def get_config() -> Config:
    config = recipe("ttfnet_r18_2x")
    config.model.name = "ttfnet_r34"
    return config
