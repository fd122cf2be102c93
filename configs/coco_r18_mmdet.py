"""mmdetection's CenterNet-ResNet-18 without deformable convolution on COCO.

    python train.py --config configs/coco_r18_mmdet.py --workdir runs/coco_r18_mmdet \\
        --config.init_from=resnet18.pth

data/coco holds train2017, val2017 and annotations as COCO distributes them (or a link to them); resnet18.pth
is torchvision's ImageNet checkpoint, which the original starts from as well.

8 GPUs of 16 images with BatchNorm statistics of their own, SGD 0.02 with momentum 0.9 and weight decay 1e-4,
linear warm-up over 1000 steps, gradients clipped to a norm of 35, drops by 10 after epochs 90 and 120 of 140
(28 passes over a set repeated five times).

Three things differ from mmdetection's training.  Its random crop is a square of 512 pixels times the scale,
drawn until it holds an object; ours is the image's longer side times the scale, as xingyizhou's.  It leaves
out images without boxes.  It mirrors a box's x to W - x; ours takes it to W - 1 - x, as xingyizhou's code
does.  Photometric distortion, cutting boxes to the crop, normalisation, targets and losses are the same.

Another batch: --config.optim.scale_lr=linear lets rate and warm-up follow it; unverified (docs/recipes.md).

Published on val2017 (mmdetection's model zoo): AP 25.9, 27.3 with flip.  Not trained here.
"""

from kpjax.config import Config, coco2017


def get_config() -> Config:
    config = Config(batch=128, epochs=140.0)
    config.model.name = "centernet_r18_mmdet"
    config.model.bn_groups = 8
    coco2017(config)
    config.augment.photometric = True
    config.augment.clip_boxes = True
    config.augment.color = 0.0
    config.augment.lighting = 0.0
    config.optim.name = "sgd"
    config.optim.lr = 0.02
    config.optim.lr_batch = 128
    config.optim.momentum = 0.9
    config.optim.weight_decay = 1e-4
    config.optim.warmup_steps = 1000
    config.optim.warmup_start = 0.001
    config.optim.clip = 35.0
    config.optim.drops = (90 / 140, 120 / 140)
    config.eval.every = 5000
    return config
