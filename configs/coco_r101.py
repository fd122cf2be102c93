"""CenterNet-ResNet-101 without deformable convolution on COCO: xingyizhou's res_101 (Objects as Points).

    python train.py --config configs/coco_r101.py --workdir runs/coco_r101 --config.init_from=resnet101.pth

data/coco holds train2017, val2017 and annotations as COCO distributes them (or a link to them); resnet101.pth
is torchvision's or timm's ImageNet checkpoint, which the original starts from as well.

The recipe is the released one of the R101 with DCN: batch 96 on 8 GPUs, Adam 3.75e-4 dropped by 10 after
epochs 90 and 120 of 140; 65 hours for its authors.  Each GPU had BatchNorm statistics of its own, of 5 images
on the first and 13 on the others; here they are of 8 groups of 12.  Where the devices' memory does not
suffice: --config.model.remat=true, or --config.optim.accumulate=2 with --config.model.bn_groups=4.

Another batch: --config.optim.scale_lr=linear lets rate and warm-up follow it; unverified (docs/recipes.md).

No figure was published for this depth without DCN; with DCN, on val2017, it is AP 34.6, 36.2 with flip.  Not
trained here.
"""

from kpjax.config import Config, coco2017


def get_config() -> Config:
    config = Config(batch=96, epochs=140.0)
    config.model.name = "centernet_r101"
    config.model.bn_groups = 8
    coco2017(config)
    config.data.crowds = "train"
    config.optim.lr = 3.75e-4
    config.optim.lr_batch = 96
    config.optim.drops = (90 / 140, 120 / 140)
    config.eval.every = 5000
    return config
