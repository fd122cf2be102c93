"""`kpjax recipes`: what the list says of each recipe is what its file says."""

from __future__ import annotations

import pytest

from kpjax import recipes
from kpjax.__main__ import main
from kpjax.commands.recipes import OWN, description, row
from kpjax.config import recipe
from kpjax.errors import ConfigError
from tests.programs import ROOT


def test_they_are_those_of_this_checkout() -> None:
    assert recipes.folder() == ROOT / "configs" and len(recipes.names()) > 25
    assert recipes.find("coco_r18") == str(ROOT / "configs" / "coco_r18.py")
    assert recipes.find(str(ROOT / "configs" / "coco_r18.py")) == recipes.find("coco_r18")
    with pytest.raises(ConfigError, match=r"^there is no recipe '\.\./setup'; "):
        recipes.named("../setup")


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split() for line in lines if line.startswith("  ") and line.split()[0] != "name"}
    assert sorted(rows) == recipes.names()
    for name, cells in rows.items():
        config = recipe(name)
        assert cells[1:4] == [config.model.name, f"{config.augment.height}x{config.augment.width}", str(config.batch)]
        assert f"{config.steps:,} steps" in " ".join(cells) or f"{config.epochs:g} epochs" in " ".join(cells)


@pytest.mark.parametrize("name", recipes.names())
def test_hardware_and_ap_are_found_where_a_file_tells_them(name: str) -> None:
    """The published recipes say on what they were trained, and which AP was published, or that none was."""
    one, text = row(name), " ".join(description(recipes.named(name)).split())
    full = one.data != OWN and "tiny" not in name
    assert bool(one.published) == ("Published " in text) and (not full or one.hardware)
    assert not full or one.published or "No figure was published" in text
    assert all(figure.strip("(),") in text for figure in one.published.split()) and one.hardware.lower() in text.lower()
    assert one.what in text and len(one.published) < 200


@pytest.mark.parametrize(
    "name, hardware, published",
    [
        ("coco_r18", "4 GPUs", "23.2, 24.7 with flip (val2017)"),
        ("coco_r101", "8 GPUs", ""),
        ("cornernet_hg104", "10 GPUs of 12 GB", "40.5 (test-dev with flip)"),
        ("coco_pose_hg104_3x", "5 GPUs", "keypoint AP 64.0 (val2017, with flip)"),
        ("bccd_r18", "two CPU cores", ""),
    ],
)
def test_some_of_them(name: str, hardware: str, published: str) -> None:
    assert (row(name).hardware, row(name).published) == (hardware, published)


def test_one_is_shown_with_commands_that_need_no_checkout(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "shapes_r18"]) == 0
    printed = capsys.readouterr().out
    assert "    kpjax train shapes_r18 --workdir runs/shapes \\\n" in printed and "    kpjax shapes --out" in printed
    assert "python" not in printed.rsplit("\n\n", 1)[0]
    assert printed.endswith(f": {ROOT / 'configs' / 'shapes_r18.py'}\n")
