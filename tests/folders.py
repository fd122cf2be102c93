"""Small data sets that the tests of the input side write for themselves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kpjax.config import DataConfig, SplitConfig

SIZES = ((40, 60), (64, 48), (30, 30), (57, 64), (20, 51), (33, 17), (64, 64))  # height, width


def picture(n: int, height: int, width: int) -> Image.Image:
    """A smooth random picture, another for each n."""
    small = np.random.default_rng(n).integers(0, 256, (5, 7, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., DataConfig]:
    """Write seven JPEG files and their JSON; returns a maker of the DataConfig that reads them.

    edit(instances) changes the JSON before it is written; keyword arguments are fields of DataConfig.
    """

    def make(edit: Callable[[dict], object] | None = None, **fields) -> DataConfig:
        images = tmp_path / "images"
        (images / "sub").mkdir(parents=True, exist_ok=True)
        instances: dict = {"images": [], "annotations": [], "categories": []}
        for n, (height, width) in enumerate(SIZES):
            name = f"sub/{n}.jpg" if n == 1 else f"{n}.jpg"
            if not (images / name).exists():
                picture(n, height, width).save(images / name, quality=90)
            instances["images"].append({"id": 50 - n, "file_name": name, "height": height, "width": width})
            for k in range(n % 4):  # images 0 and 4 have none
                instances["annotations"].append(
                    {
                        "id": 10 * n + k + 1,
                        "image_id": 50 - n,
                        "category_id": (7, 3)[k % 2],
                        "bbox": [1.5 + k, 2, 10, 7 + k],
                        "area": 60.0,
                        "iscrowd": 0,
                    }
                )
        instances["categories"] = [{"id": 7, "name": "seven"}, {"id": 3, "name": "three"}, {"id": 90, "name": "none"}]
        if edit:
            edit(instances)
        path = tmp_path / "instances.json"
        path.write_text(json.dumps(instances))
        split = SplitConfig(str(images), str(path))
        return DataConfig(**{"train": split, "val": split, "canvas": 64, "max_boxes": 8, "threads": 2} | fields)

    return make
