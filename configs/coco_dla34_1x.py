"""CenterNet-DLA-34 on COCO, the 140 epochs of the 1x schedule: xingyizhou's dla_34 (Objects as Points).

    python train.py --config configs/coco_dla34_1x.py --workdir runs/coco_dla34_1x \\
        --config.init_from=dla34.pth

data/coco holds train2017, val2017 and annotations as COCO distributes them (or a link to them); dla34.pth is
ucbdrive's ImageNet checkpoint, which the original starts from as well.

Batch 128 on 8 GPUs, Adam 5e-4 dropped by 10 after epochs 90 and 120 of 140; 57 hours for its authors.  Each
GPU had BatchNorm statistics of its own, of 9 images on the first and 17 on the others; here they are of 8
groups of 16.  16 images fit a TPU v5e chip (docs/benchmarks.md); where memory does not suffice:
--config.model.dtype=bfloat16, --config.model.remat=true, or --config.optim.accumulate=2 with
--config.model.bn_groups=4.

Another batch: --config.optim.scale_lr=linear lets rate and warm-up follow it; unverified (docs/recipes.md).

Published on val2017: AP 36.3, 38.2 with flip, 40.7 with flip and five scales.  Not trained here.
"""

from kpjax.config import Config, coco2017


def get_config() -> Config:
    config = Config(batch=128, epochs=140.0)
    config.model.name = "centernet_dla34"
    config.model.bn_groups = 8
    coco2017(config)
    config.data.crowds = "train"
    config.optim.lr = 5e-4
    config.optim.lr_batch = 128
    config.optim.drops = (90 / 140, 120 / 140)
    config.eval.every = 5000
    return config
