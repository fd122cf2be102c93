"""The demo with a small TTFNet on generated shapes.

    python -m kpjax shapes --out runs/shapes_data
    python train.py --config configs/shapes_ttf.py --workdir runs/shapes_ttf \\
        --config.data.train.images=runs/shapes_data/train \\
        --config.data.train.annotations=runs/shapes_data/annotations/instances_train.json \\
        --config.data.val.images=runs/shapes_data/val \\
        --config.data.val.annotations=runs/shapes_data/annotations/instances_val.json

The network of own.py without its last stage, which images of 128 pixels do not need, and its optimiser, with the little
augmentation of shapes_r18.py; 1,700 steps take about the time of that recipe's 1,800.
"""

from kpjax.config import Config, recipe


def get_config() -> Config:
    config, own = recipe("shapes_r18"), recipe("own")
    config.model, config.optim = own.model, own.optim
    config.model.options |= {"stages": 3, "neck": (64, 48), "shortcuts": (1, 1)}
    config.steps = 1700
    return config
