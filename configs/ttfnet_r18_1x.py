"""TTFNet-ResNet-18 on COCO, the 12 epochs of the 1x schedule: ZJULearning's ttfnet_r18_1x.

    python train.py --config configs/ttfnet_r18_1x.py --workdir runs/ttfnet_r18_1x --config.init_from=resnet18.pth

data/coco holds train2017, val2017 and annotations as COCO distributes them (or a link to them); resnet18.pth
is torchvision's ImageNet checkpoint, which the original starts from as well.

8 GPUs of 16 images with BatchNorm statistics of their own, SGD 0.016 with momentum 0.9 and weight decay 4e-4,
linear warm-up from a fifth over 500 steps, gradients clipped to a norm of 35, drops by 10 after epochs 9 and 11
of 12; 1.8 hours for its authors.  Images are stretched to 512x512 and mirrored half of the time; nothing else.
Biases outside of the trunk's named BatchNorms learn at twice the rate and without decay, as there.

Three things differ.  The original trains neither the trunk's stem nor its first stage, whose BatchNorms keep
their statistics; here all layers learn, unless --config.model.freeze_stages=1 is given.  Its batches hold images
of one orientation.  It rounds stretched pixels to whole numbers.

Another batch: --config.optim.scale_lr=linear lets rate and warm-up follow it; unverified (docs/recipes.md).

Published on val2017: AP 25.9.  Not trained here.
"""

from kpjax.config import Config, coco2017


def get_config() -> Config:
    config = Config(batch=128, epochs=12.0)
    config.model.name = "ttfnet_r18"
    config.model.bn_groups = 8
    coco2017(config)
    config.data.empty_images = "drop"
    config.augment.kind = "none"
    config.augment.clip_boxes = True
    config.augment.color = 0.0
    config.augment.lighting = 0.0
    config.optim.name = "sgd"
    config.optim.lr = 0.016
    config.optim.lr_batch = 128
    config.optim.momentum = 0.9
    config.optim.weight_decay = 4e-4
    config.optim.bias_lr = 2.0
    config.optim.bias_decay = False
    config.optim.warmup_steps = 500
    config.optim.warmup_start = 0.2
    config.optim.clip = 35.0
    config.optim.drops = (9 / 12, 11 / 12)
    config.eval.resolution = "fixed"
    config.eval.every = 5000
    return config
