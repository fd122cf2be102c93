"""TTFNet-ResNet-18 on COCO by the settings of own.py, for a host of 8 GPUs or a v5e-8: kpjax's own, unverified.

    python train.py --config configs/ttfnet_r18_muon.py --workdir runs/ttfnet_r18_muon --config.init_from=resnet18.pth

data/coco holds train2017, val2017 and annotations as COCO distributes them (or a link to them); resnet18.pth is
torchvision's ImageNet checkpoint.

The network of ttfnet_r18_2x.py and as many epochs, 24, in bfloat16.  Muon and a rate that is held for half of the run
and then falls to zero, as in own.py; the pretrained trunk learns at a quarter of it.  Images are cropped and scaled as
in Objects as Points, and the weights' average is evaluated.  BatchNorm has the statistics of 8 groups of 16 images.
All of it was measured on small data alone (docs/recipes.md): the rate for COCO is a guess.

Another batch: --config.optim.scale_lr=linear lets rate and warm-up follow it; unverified.

`kpjax plan --config ttfnet_r18_muon --topology v5e:2x4` and `--topology h100:8`: 2.7 and 2.1 GiB a device; by the
roofline a step takes 58.2 and 6.6 ms at least, and the 22,178 steps 22 and 3 minutes.  Expect several times that, and
on GPUs what reading the images takes.

No figure was published, and none measured.
"""

from kpjax.config import Config, recipe


def get_config() -> Config:
    config = recipe("ttfnet_r18_2x")
    config.model.dtype = "bfloat16"
    config.augment.kind = "crop"
    config.optim = recipe("own").optim
    config.optim.lr_batch = 128
    config.optim.warmup_steps = 500
    config.optim.ema = 0.999
    config.optim.trunk_lr = 0.25
    return config
