"""The demo of pose: a small CenterNet-ResNet-18 that learns boxes and joints of drawn figures (`make demo MODEL=pose`).

    python -m kpjax shapes --kind figures --out runs/figures_data
    python train.py --config configs/shapes_pose.py --workdir runs/figures \\
        --config.data.train.images=runs/figures_data/train \\
        --config.data.train.annotations=runs/figures_data/annotations/instances_train.json \\
        --config.data.val.images=runs/figures_data/val \\
        --config.data.val.annotations=runs/figures_data/annotations/instances_val.json

The network and the schedule of `shapes_r18.py`.  A mirrored image exchanges left and right joints: figures
face the viewer, so that it is one of them too.
"""

from kpjax.config import Config


def get_config() -> Config:
    config = Config(batch=8, steps=3400)
    config.model.name = "centernet_r18_pose"
    config.model.options = {"width": 32, "deconv": (64, 48), "head_channels": 48, "wh_weight": 0.2}
    config.model.options["joint_heatmap_weight"] = 3.0  # arms are thin: finding hands and elbows is what takes long
    config.data.canvas = 128
    config.data.max_boxes = 6
    config.augment.kind = "shift"
    config.augment.shift = 0.05
    config.augment.scale = 0.1
    config.augment.color = 0.0
    config.augment.lighting = 0.0
    config.augment.height = config.augment.width = 128
    config.optim.lr = 2e-3
    config.optim.lr_batch = 8
    config.optim.drops = (0.75, 0.92)
    config.optim.warmup_steps = 50
    config.optim.ema = 0.995
    config.eval.resolution = "fixed"
    config.eval.batch = 32
    config.checkpoint.every = 500
    config.log_every = 50
    return config
