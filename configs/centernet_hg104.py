"""CenterNet: Objects as Points, Hourglass-104, on COCO: xingyizhou's recipe.

    python train.py --config configs/centernet_hg104.py --workdir runs/centernet_hg104 \\
        --config.init_from=ExtremeNet_500000.pkl

data/coco holds train2017, val2017 and annotations as COCO distributes them (or a link to them).  The original
starts from ExtremeNet's released weights (`python -m kpjax download --list`), of which the backbone is taken: those
of 500,000 steps; from random weights it needs a longer schedule.  Other detectors with the same network serve as well.

50 epochs of 24 images on 5 GPUs (4 on the first, 5 on the others), Adam 2.5e-4 dropped by 10 after epoch 40;
109 hours for its authors.  BatchNorm statistics are those of 4 groups of 6 here.

Another batch: --config.optim.scale_lr=linear lets rate and warm-up follow it; unverified (docs/recipes.md).

Published on val2017: AP 40.3 plain, 42.2 with flip.  Not trained here.
"""

from kpjax.config import Config, coco2017


def get_config() -> Config:
    config = Config(batch=24, epochs=50.0)
    config.model.name = "centernet_hg104"
    config.model.bn_groups = 4
    coco2017(config)
    config.data.crowds = "train"
    config.optim.lr = 2.5e-4
    config.optim.lr_batch = 24
    config.optim.drops = (40 / 50,)
    config.eval.every = 10_000
    return config
