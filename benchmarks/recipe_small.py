"""A base for recipes.py: a small CenterNet-ResNet-18 by Adam and a cosine, for comparison with configs/own.py.

Sizes and data come from recipes.py; the warm-up and the weights' average follow the number of steps, see
recipe_settings.py.
"""

from kpjax.config import Config, recipe


def get_config() -> Config:
    config = recipe("own")
    config.model.name = "centernet_r18"
    config.model.options = {"width": 32, "deconv": (64, 48), "head_channels": 32, "wh_weight": 0.2}
    config.optim.name, config.optim.lr = "adam", 1.5e-3
    config.optim.schedule, config.optim.hold = "cosine", 0.0
    return config
