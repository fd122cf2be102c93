"""CornerNet-Squeeze on COCO: the released recipe (arXiv 1904.08900).

    python train.py --config configs/cornernet_squeeze.py --workdir runs/cornernet_squeeze

data/coco holds train2017, val2017 and annotations as COCO distributes them (or a link to them).  It starts
from random weights, as the original does.

500,000 steps of 55 images on 4 GPUs, Adam 2.5e-4 dropped by 10 at step 450,000; about two weeks for its authors.  The
first GPU had 13 images and the others 14, each with BatchNorm statistics of its own and with pull and push losses
that are sums over its images: here they are scaled to 14 (`embedding_images`), and the statistics are those of 5 groups
of 11.  511x511 inputs, 64x64 maps, crops of 511 pixels times 0.6 to 1.3.
On 4 devices take --config.batch=56 --config.model.bn_groups=4.

Another batch: --config.optim.scale_lr=linear lets rate and warm-up follow it, --config.steps keeps the passes
over the data (500,000 x 55 / batch); unverified (docs/recipes.md).

Published on COCO, one scale without flip: AP 34.4; 30 ms an image on a GTX 1080 Ti.  Not trained here.
"""

from kpjax.config import Config, recipe


def get_config() -> Config:
    config = recipe("cornernet_hg104")
    config.batch = 55
    config.model.name = "cornernet_squeeze"
    config.model.options = {"embedding_images": 14}
    config.model.bn_groups = 5
    config.optim.lr_batch = 55
    config.eval.preset = "na"
    return config
