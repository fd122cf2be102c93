"""CornerNet-Saccade, Hourglass-54, on COCO: the released recipe (CornerNet-Lite, arXiv 1904.08900).

    python train.py --config configs/cornernet_saccade.py --workdir runs/cornernet_saccade

data/coco holds train2017, val2017 and annotations as COCO distributes them (or a link to them).  It starts
from random weights, as the original does.

500,000 steps of 48 images on 4 GPUs, Adam 2.5e-4 dropped by 10 at step 450,000.  BatchNorm statistics are those of 4
groups of 12, and pull and push losses, sums over a GPU's images, are scaled to 12 (`embedding_images`).  255x255
inputs, 64x64 maps; each crop is made for one object, which gets a random size; images without an object are resized
by 0.5 to 1.1.

Another batch: --config.optim.scale_lr=linear lets rate and warm-up follow it, --config.steps keeps the passes
over the data (500,000 x 48 / batch); unverified (docs/recipes.md).

Published on minival, one scale without flip: AP 42.6 (43.2 on test-dev); 190 ms an image on a GTX 1080 Ti.  Not
trained here.
"""

from kpjax.config import Config, coco2017


def get_config() -> Config:
    config = Config(batch=48, steps=500_000)
    config.model.name = "cornernet_saccade"
    config.model.options = {"embedding_images": 12}
    config.model.bn_groups = 4
    coco2017(config)
    config.data.crowds = "train"
    config.augment.kind = "object"
    config.augment.scales = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1)
    config.augment.height = config.augment.width = 255
    config.optim.lr = 2.5e-4
    config.optim.lr_batch = 48
    config.optim.drops = (0.9,)
    config.eval.every = 10_000
    return config
