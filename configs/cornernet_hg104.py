"""CornerNet, Hourglass-104, on COCO: the released recipe (arXiv 1808.01244).

    python train.py --config configs/cornernet_hg104.py --workdir runs/cornernet_hg104

data/coco holds train2017, val2017 and annotations as COCO distributes them (or a link to them).  It starts
from random weights, as the original does.

500,000 steps of 49 images on 10 GPUs of 12 GB, Adam 2.5e-4 dropped by 10 at step 450,000; more than two weeks
for its authors.  The first GPU had 4 images and the others 5, each with BatchNorm statistics of its own and
with pull and push losses that are sums over its images: here they are scaled to 5 (`embedding_images`), and
the statistics are those of 7 groups of 7.  511x511 inputs, 128x128 maps, crops of 511 pixels times 0.6 to 1.3.
On 8 devices take --config.batch=48 --config.model.bn_groups=8.

Another batch: --config.optim.scale_lr=linear lets rate and warm-up follow it, --config.steps keeps the passes
over the data (500,000 x 49 / batch); unverified (docs/recipes.md).

Published on test-dev with flip: AP 40.5 (CornerNet trained on the 2014 trainval35k split).  Not trained here.
"""

from kpjax.config import Config, coco2017


def get_config() -> Config:
    config = Config(batch=49, steps=500_000)
    config.model.name = "cornernet_hg104"
    config.model.options = {"embedding_images": 5}
    config.model.bn_groups = 7
    coco2017(config)
    config.data.crowds = "train"
    config.augment.kind = "window"
    config.augment.height = config.augment.width = 511
    config.optim.lr = 2.5e-4
    config.optim.lr_batch = 49
    config.optim.drops = (0.9,)
    config.eval.preset = "flip"
    config.eval.every = 10_000
    return config
