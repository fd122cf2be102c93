"""The networks in PyTorch are kpjax's: their state dicts are read by `import_torch`, and the heads are equal."""

from __future__ import annotations

import importlib
import json
import pathlib
import sys
from typing import Any

import jax
import numpy as np
import pytest

import kpjax
from kpjax.detectors import from_config, options_of

torch = pytest.importorskip("torch", reason="needs PyTorch (the extra torch)")
sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "benchmarks"))
torch_layers = importlib.import_module("torch_layers")
torch_networks = importlib.import_module("torch_networks")
torch_step = importlib.import_module("torch_step")
model_config = importlib.import_module("compile_time").model_config


def randomise(network: Any) -> None:
    """Weights that keep maps at about 1, offsets of deformable convolutions included."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
            elif value.ndim > 1:
                value.normal_(std=(2 / value[0].numel()) ** 0.5)
            elif value.is_floating_point():
                value.normal_(std=0.3)
                value += float("bn" in name and name.endswith("weight"))


@pytest.mark.parametrize("name", torch_networks.MODELS)
def test_heads_are_those_of_kpjax(name: str) -> None:
    config = model_config(name, 1, "float32", tiny=True)
    if "hg104" in name:
        config.model.options["stacks"] = 2
    detector = from_config(config, 3)
    network = torch_networks.build(name, 3, **options_of(config.model)).eval()
    randomise(network)
    variables = kpjax.import_torch(detector, network.state_dict())
    side = config.augment.height
    images = np.random.default_rng(0).standard_normal((2, side, side, 3), np.float32)
    expected = jax.jit(lambda v, x: detector.net.apply(v, x, train=False))(variables, images)
    with torch.no_grad():
        outputs = network(torch.from_numpy(np.moveaxis(images, 3, 1).copy()))
    for found, maps in zip(outputs, expected, strict=True):
        assert set(found) == set(maps)
        for head, values in maps.items():
            assert float(np.std(values)) > 1e-3
            scale = float(np.abs(values).max())
            np.testing.assert_allclose(np.moveaxis(found[head].numpy(), 1, 3) / scale, values / scale, atol=1e-4)


def test_deformable_convolution_at_places_counted_by_hand() -> None:
    x = torch.arange(12.0).reshape(1, 1, 3, 4)
    offset, mask, weight = torch.zeros(1, 18, 3, 4), torch.zeros(1, 9, 3, 4), torch.ones(1, 1, 3, 3)
    mask[:, 4] = 0.5  # the tap in the middle alone
    offset[:, 8], offset[:, 9] = 0.5, 1.0  # half a cell down, one to the right
    y = torch_layers.deform_by_grid_sample(x, offset, mask, weight)
    below = torch.nn.functional.pad(x, (0, 1, 0, 1))
    np.testing.assert_allclose(y, 0.25 * (below[:, :, :3, 1:] + below[:, :, 1:, 1:]), atol=1e-5)


def test_rows_of_each_form(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(network: Any) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch.nn.Module, "compile", fails)
    out = tmp_path / "rows"
    command = ["torch_step.py", "--model", "centernet_r18", "--tiny", "--batches", "1", "2", "--steps", "1"]
    monkeypatch.setattr(sys, "argv", [*command, "--rounds", "1", "--rows", str(out)])
    assert torch_step.main() == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    forms = {(row["framework"], row["kind"], row["batch"]) for row in rows}
    assert forms == {(f, k, b) for f in ("torch", "torch-nhwc") for k in torch_step.KINDS for b in (1, 2)}
    assert all(row["images_per_s"] == pytest.approx(row["batch"] / row["seconds"]) for row in rows)
    assert capsys.readouterr().out.count("torch.compile failed (no compiler)") == 2


def test_a_step_of_training_lowers_the_loss_and_changes_all_weights() -> None:
    config = model_config("centernet_r18", 2, "float32", tiny=True)
    torch.manual_seed(0)
    network = torch_networks.build("centernet_r18", 3, **options_of(config.model))
    before = {name: value.clone() for name, value in network.named_parameters()}
    images = torch_step.random_images(2, 64, torch.device("cpu"))

    def cast() -> Any:
        return torch.autocast("cpu", enabled=False)

    step = torch_step.training_step(network, images, torch.channels_last, cast)
    losses = [float(step().detach()) for _ in range(6)]
    assert losses[-1] < losses[0]
    assert all(not torch.equal(value, before[name]) for name, value in network.named_parameters())
