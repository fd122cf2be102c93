"""CenterNet: Keypoint Triplets, Hourglass-104, on COCO: the released recipe (arXiv 1904.08189).

    python train.py --config configs/triplet_hg104.py --workdir runs/triplet_hg104

data/coco holds train2017, val2017 and annotations as COCO distributes them (or a link to them).  It starts
from random weights, as the original does.

480,000 steps of 48 images on 8 GPUs of 32 GB, Adam 2.5e-4 dropped by 10 at step 450,000; two to three weeks
for its authors.  Each GPU had 6 images, with BatchNorm statistics of its own (`bn_groups`) and with pull and
push losses that are sums over its images (`embedding_images`).  511x511 inputs, 128x128 maps, crops of 511
pixels times 0.6 to 1.3.

Another batch: --config.optim.scale_lr=linear lets rate and warm-up follow it, --config.steps keeps the passes
over the data (480,000 x 48 / batch); unverified (docs/recipes.md).

Published on test-dev with flip: AP 44.9.  Not trained here.
"""

from kpjax.config import Config, recipe


def get_config() -> Config:
    config = recipe("triplet_hg52")
    config.model.name = "triplet_hg104"
    return config
