"""ExtremeNet, Hourglass-104, on COCO: the released recipe (arXiv 1901.08043).

    python train.py --config configs/extremenet_hg104.py --workdir runs/extremenet_hg104 \\
        --config.init_from=CornerNet_500000.pkl

data/coco holds train2017, val2017 and annotations as COCO distributes them (or a link to them); extreme points are
made of their polygons and masks when the split is opened.  The original starts from CornerNet's released weights
(`python -m kpjax download --list`), of which the backbone is taken; its authors found 2 AP less from random weights.

250,000 steps of 24 images on 5 GPUs of 12 GB (4 on the first, 5 on the others), Adam 2.5e-4 dropped by 10 at step
200,000; ten days for its authors.  BatchNorm statistics are those of 4 groups of 6 here.  511x511 inputs, 128x128
maps, crops of 511 pixels times 0.6 to 1.3.

Another batch: --config.optim.scale_lr=linear lets rate and warm-up follow it, --config.steps keeps the passes
over the data (250,000 x 24 / batch); unverified (docs/recipes.md).

Published on val2017: AP 40.3 with flip, 43.3 with flip and five scales.  Not trained here.
"""

from kpjax.config import Config, coco2017


def get_config() -> Config:
    config = Config(batch=24, steps=250_000)
    config.model.name = "extremenet_hg104"
    config.model.bn_groups = 4
    coco2017(config)
    config.data.crowds = "train"
    config.augment.kind = "window"
    config.augment.height = config.augment.width = 511
    config.optim.lr = 2.5e-4
    config.optim.lr_batch = 24
    config.optim.drops = (0.8,)
    config.eval.preset = "flip"
    config.eval.every = 10_000
    return config
