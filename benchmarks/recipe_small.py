"""What `kpjax train --data FOLDER` chooses for boxes on a CPU, as a base for recipes.py: a small CenterNet-ResNet-18.

Sizes and data come from recipes.py; the warm-up and the weights' average follow the number of steps, see
recipe_settings.py.
"""

from kpjax.config import Config
from kpjax.training.choices import SMALL, Facts, Machine, Wishes, choose


def get_config() -> Config:
    facts = Facts(images=1000, val_images=200, side=256, aspect=1.0, object_size=0.2, most_objects=32)
    return choose(facts, Machine("cpu", 1, 0), Wishes(), "centernet_r18", SMALL, "").config
