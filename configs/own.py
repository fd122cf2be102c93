"""One's own data, a few hundred images or some thousands: a small TTFNet from random weights, on a CPU or one GPU.

    kpjax train --data FOLDER --minutes 25

takes these settings, sets sizes, batch and steps by the data and the machine, and writes them down (on a GPU the
network has its whole width).  To set them by hand:

    python train.py --config configs/own.py --workdir runs/mine \\
        --config.data.train.images=DATA/train --config.data.train.annotations=DATA/train.json \\
        --config.data.val.images=DATA/val --config.data.val.annotations=DATA/val.json \\
        --config.augment.height=384 --config.augment.width=384 --config.data.canvas=768 --config.steps=3000

The smallest objects should keep some 12 of the input's pixels, and `data.canvas` be twice the input, or as large as the
images.  Muon, and a rate that is held for half of the run and then falls to zero: docs/recipes.md has what was
compared, and on which data.
"""

from kpjax.config import Config


def get_config() -> Config:
    config = Config(batch=8, steps=2000)
    config.model.name = "ttfnet_r18"
    # Half the released width, and no more features at stride 32 than at 16: Muon's products grow with their cube.
    config.model.options = {
        "width": 32,
        "stages": 4,
        "max_width": 128,
        "neck": (96, 64, 48),
        "shortcuts": (1, 1, 1),
        "dcn": False,
        "heatmap_channels": 32,
        "heatmap_convs": 1,
        "sides_channels": 32,
    }
    config.data.canvas = 640
    config.augment.height = config.augment.width = 256
    config.optim.name = "muon"
    config.optim.lr = 4e-3
    config.optim.lr_batch = 8
    config.optim.schedule = "wsd"
    config.optim.hold = 0.5
    config.optim.warmup_steps = 50
    config.optim.ema = 0.995
    config.eval.resolution = "fixed"
    config.eval.every = 400
    config.checkpoint.every = 200
    return config
