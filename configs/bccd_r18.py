"""CenterNet-ResNet-18 from random weights on BCCD: blood cells, 3 classes, 364 photographs.

    python -m kpjax voc --root DATA/bccd --list ImageSets/Main/train.txt --out runs/bccd_train.json
    python -m kpjax voc --root DATA/bccd --list ImageSets/Main/val.txt --out runs/bccd_val.json
    python train.py --config configs/bccd_r18.py --workdir runs/bccd \\
        --config.data.train.images DATA/bccd/JPEGImages --config.data.train.annotations runs/bccd_train.json \\
        --config.data.val.images DATA/bccd/JPEGImages --config.data.val.annotations runs/bccd_val.json

The schedule of a comparison with the PyTorch original: 256x256 fixed resolution, batch 8, Adam 5e-4 dropped
by 10 at 75% of 1,525 steps, the original's augmentation.  Two CPU cores suffice; docs/recipes.md has what it
reached.
"""

from kpjax.config import Config


def get_config() -> Config:
    config = Config(batch=8, steps=1525)
    config.model.name = "centernet_r18"
    config.data.canvas = 640
    config.data.max_boxes = 64
    config.augment.height = config.augment.width = 256
    config.optim.lr = 5e-4
    config.optim.lr_batch = 8
    config.optim.drops = (0.75,)
    config.eval.resolution = "fixed"
    config.eval.every = 300
    config.checkpoint.every = 100
    return config
