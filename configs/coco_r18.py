"""CenterNet-ResNet-18 without deformable convolution on COCO: xingyizhou's res_18 (Objects as Points).

    python train.py --config configs/coco_r18.py --workdir runs/coco_r18 --config.init_from=resnet18.pth

data/coco holds train2017, val2017 and annotations as COCO distributes them (or a link to them); resnet18.pth
is torchvision's or timm's ImageNet checkpoint, which the original starts from as well.

The recipe is the released one of the R18 with DCN: batch 114 on 4 GPUs, Adam 5e-4 dropped by 10 after epochs
90 and 120 of 140; 28 hours for its authors.  The 114 images were divided unevenly among the GPUs (18, 32, 32,
32), each with BatchNorm statistics of its own; here they are the whole batch's.  On 8 devices take
--config.batch=112.

Another batch: --config.optim.scale_lr=linear lets rate and warm-up follow it; unverified (docs/recipes.md).

Published on val2017 (reported for R18 in mmdetection's thread 4602): AP 23.2, 24.7 with flip; for a plain res
network, its depth not stated (xingyizhou's issue 480): 26.5, 28.0.  Not trained here.
"""

from kpjax.config import Config, coco2017


def get_config() -> Config:
    config = Config(batch=114, epochs=140.0)
    config.model.name = "centernet_r18"
    coco2017(config)
    config.data.crowds = "train"
    config.optim.lr = 5e-4
    config.optim.lr_batch = 114
    config.optim.drops = (90 / 140, 120 / 140)
    config.eval.every = 5000
    return config
