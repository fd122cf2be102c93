"""The demo with a small TTFNet on generated shapes.

    python -m kpjax shapes --out runs/shapes_data
    python train.py --config configs/shapes_ttf.py --workdir runs/shapes_ttf \\
        --config.data.train.images=runs/shapes_data/train \\
        --config.data.train.annotations=runs/shapes_data/annotations/instances_train.json \\
        --config.data.val.images=runs/shapes_data/val \\
        --config.data.val.annotations=runs/shapes_data/annotations/instances_val.json

As shapes_r18.py, half the released width and a trunk that ends at stride 16; without deformable convolution.
"""

from kpjax.config import Config, recipe


def get_config() -> Config:
    config = recipe("shapes_r18")
    config.model.name = "ttfnet_r18"
    config.model.options = {
        "width": 32,
        "stages": 3,
        "neck": (64, 48),
        "shortcuts": (1, 1),
        "dcn": False,
        "heatmap_channels": 32,
        "heatmap_convs": 1,
        "sides_channels": 32,
    }
    return config
