"""The demo's small network on BCCD, from its weights on shapes: learning one's own objects from a checkpoint.

    make demo
    python -m kpjax voc --root DATA/bccd --list ImageSets/Main/train.txt --out runs/bccd_train.json
    python -m kpjax voc --root DATA/bccd --list ImageSets/Main/val.txt --out runs/bccd_val.json
    python train.py --config configs/bccd_finetune.py --workdir runs/bccd_finetune \\
        --config.init_from=workdir/demo/shapes_ttf-0 \\
        --config.data.train.images=DATA/bccd/JPEGImages --config.data.train.annotations=runs/bccd_train.json \\
        --config.data.val.images=DATA/bccd/JPEGImages --config.data.val.annotations=runs/bccd_val.json

Without --config.init_from the same network starts from random weights; docs/recipes.md compares the two.  The model is
that of configs/shapes_ttf.py, the rest that of configs/own.py; only the class head, for three classes and not five,
starts from random weights.
"""

from kpjax.config import Config, recipe


def get_config() -> Config:
    config = recipe("own")
    config.model = recipe("shapes_ttf").model
    config.steps = 600
    config.data.max_boxes = 64
    config.optim.warmup_steps = 30
    config.optim.ema = 0.98
    config.eval.every = 200
    return config
