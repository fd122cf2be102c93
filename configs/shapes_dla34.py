"""A small CenterNet-DLA-34 with deformable convolution on the demo's shapes (`make demo MODEL=dla34`).

    python -m kpjax shapes --out runs/shapes_data
    python train.py --config configs/shapes_dla34.py --workdir runs/shapes_dla34 \\
        --config.data.train.images=runs/shapes_data/train \\
        --config.data.train.annotations=runs/shapes_data/annotations/instances_train.json \\
        --config.data.val.images=runs/shapes_data/val \\
        --config.data.val.annotations=runs/shapes_data/annotations/instances_val.json

All of DLA-34's layers at half the released width.  Shapes have every colour already, so there is no colour
jitter.  Offsets have a tenth of the learning rate; with the whole rate AP was lower.
"""

from kpjax.config import Config, recipe


def get_config() -> Config:
    config = recipe("shapes_r18")
    config.steps = 2000
    config.model.name = "centernet_dla34"
    config.model.options = {"width": 8, "head_channels": 32, "wh_weight": 0.2}
    config.optim.offset_lr = 0.1
    return config
