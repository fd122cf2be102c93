"""The base `recipe_small.py` with another network, for recipes.py: a small TTFNet-ResNet-18, the demo's."""

import pathlib
import runpy

from kpjax.config import Config, recipe


def get_config() -> Config:
    config: Config = runpy.run_path(str(pathlib.Path(__file__).with_name("recipe_small.py")))["get_config"]()
    config.model = recipe("shapes_ttf").model
    return config
