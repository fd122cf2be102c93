"""CenterNet-DLA-34 on COCO, the 230 epochs of the 2x schedule: xingyizhou's dla_34 (Objects as Points).

    python train.py --config configs/coco_dla34_2x.py --workdir runs/coco_dla34_2x \\
        --config.init_from=dla34.pth

data/coco holds train2017, val2017 and annotations as COCO distributes them (or a link to them); dla34.pth is
ucbdrive's ImageNet checkpoint, which the original starts from as well.

Batch 128 on 8 GPUs, Adam 5e-4 dropped by 10 after epochs 180 and 210 of 230; 92 hours for its authors.  Each
GPU had BatchNorm statistics of its own, of 9 images on the first and 17 on the others; here they are of 8
groups of 16.  16 images fit a TPU v5e chip (docs/benchmarks.md); where memory does not suffice:
--config.model.dtype=bfloat16, --config.model.remat=true, or --config.optim.accumulate=2 with
--config.model.bn_groups=4.

Another batch: --config.optim.scale_lr=linear lets rate and warm-up follow it; unverified (docs/recipes.md).

Published on val2017: AP 37.4, 39.2 with flip, 41.7 with flip and five scales.  Not trained here.
"""

from kpjax.config import Config, recipe


def get_config() -> Config:
    config = recipe("coco_dla34_1x")
    config.epochs = 230.0
    config.optim.drops = (180 / 230, 210 / 230)
    return config
