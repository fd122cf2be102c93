"""mmdetection's CornerNet, Hourglass-104, on COCO: its 8x6 recipe.

    python train.py --config configs/cornernet_hg104_mmdet.py --workdir runs/cornernet_hg104_mmdet

data/coco holds train2017, val2017 and annotations as COCO distributes them (or a link to them).

8 GPUs of 6 images with BatchNorm statistics of their own and pull and push losses that are sums over them
(`embedding_images`), 210 epochs, Adam 5e-4 dropped by 10 after 180, linear warm-up over 500 steps from a
third, gradients clipped to a norm of 35.

Differences from mmdetection's training: it draws up to 50 crops until one holds an object, and leaves out
images without boxes; it mirrors a box's x to W - x, ours takes it to W - 1 - x.

Another batch: --config.optim.scale_lr=linear lets rate and warm-up follow it; unverified (docs/recipes.md).

Published on val2017: AP 40.9 plain, 41.2 with flip.  Not trained here.
"""

from kpjax.config import Config, coco2017


def get_config() -> Config:
    config = Config(batch=48, epochs=210.0)
    config.model.name = "cornernet_hg104_mmdet"
    config.model.options = {"embedding_images": 6}
    config.model.bn_groups = 8
    coco2017(config)
    config.augment.kind = "window"
    config.augment.height = config.augment.width = 511
    config.augment.photometric = True
    config.augment.clip_boxes = True
    config.augment.color = 0.0
    config.augment.lighting = 0.0
    config.optim.lr = 5e-4
    config.optim.lr_batch = 48
    config.optim.drops = (180 / 210,)
    config.optim.warmup_steps = 500
    config.optim.warmup_start = 1 / 3
    config.optim.clip = 35.0
    config.eval.every = 10_000
    return config
