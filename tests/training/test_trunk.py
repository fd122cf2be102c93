"""What of a network does not learn: frozen stages and BatchNorms, in a small network with a trunk and a neck."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kpjax
from kpjax.config import Config
from kpjax.detectors.base import Detector
from kpjax.errors import ConfigError
from kpjax.nn.layers import BatchNorm, Conv, ConvBN
from kpjax.parallel.sharding import make_mesh, put_batch, replicated
from kpjax.training.checkpoints import Checkpoints
from kpjax.training.step import TrainState, init_state, jit_step, make_step, state_shardings
from kpjax.training.trunk import check_stages, in_trunk, is_frozen
from tests.tiny import CLASSES, random_batch, random_variables, tiny_config, tiny_detector


class Block(nn.Module):
    """A stage of the trunk."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return nn.relu(BatchNorm(name="bn1")(Conv(8, name="conv1")(x), train))


class Trunk(nn.Module):
    """A stem and two stages, the second of which is computed again in the backward pass."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.relu(BatchNorm(name="bn1")(Conv(8, kernel=4, stride=4, padding=0, name="conv1")(x), train))
        x = Block(name="layer1_0")(x, train)
        return nn.remat(Block, static_argnums=(2,))(name="layer2_0")(x, train)


class Backbone(nn.Module):
    """Trunk and neck."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return ConvBN(8, name="neck")(Trunk(name="trunk")(x, train), train)


class Net(nn.Module):
    """Images -> heads at stride 4."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> list[dict[str, jax.Array]]:
        x = Backbone(name="backbone")(images, train)
        return [
            {head: Conv(c, bias=True, name=head)(x) for head, c in (("heatmap", CLASSES), ("wh", 2), ("offset", 2))}
        ]


def detector() -> Detector:
    return dataclasses.replace(tiny_detector(), net=Net())


def settings(**model: Any) -> Config:
    config = tiny_config()
    config.init_from = "weights.pth"
    config.optim.name, config.optim.lr, config.optim.weight_decay, config.optim.trunk_lr = "adamw", 0.01, 0.1, 0.5
    config.optim.ema, config.optim.ema_tau = 0.9, 2.0
    for name, value in model.items():
        setattr(config.model, name, value)
    return config.check()


def training(config: Config, fsdp: int = 1) -> tuple[TrainState, Callable[[TrainState, int], Any]]:
    """The first state, on the host, and (state, number of the batch) -> (state, metrics)."""
    state = init_state(detector(), config, 10, jax.random.key(0)).replace(**random_variables(Net()))
    # Not the mean 0 and variance 1 of new statistics, with which nothing would be normalised.
    stats = jax.tree.map(lambda x: x + 0.25, state.batch_stats)
    state = jax.tree.map(np.array, state.replace(batch_stats=stats, ema=state.params))
    mesh = make_mesh(fsdp, jax.devices()[:fsdp])
    step = jit_step(make_step(detector(), config, 10, mesh), mesh, state)

    def take(before: TrainState, number: int) -> Any:
        placed = jax.device_put(before, state_shardings(mesh, before))
        # Copies: the step gives its state's memory away.
        return jax.tree.map(np.array, step(placed, put_batch(random_batch(config.batch, number), mesh)))

    return state, take


def trained(config: Config, fsdp: int = 1) -> tuple[TrainState, TrainState, list[dict[str, Any]]]:
    """The state before and after two steps, and their metrics."""
    start, take = training(config, fsdp)
    first, one = take(start, 0)
    second, two = take(first, 1)
    return start, second, [one, two]


def moved(before: Any, after: Any) -> dict[str, bool]:
    """Path of each leaf -> whether it differs."""
    after = dict(jax.tree_util.tree_leaves_with_path(after))
    return {
        "/".join(k.key for k in path): not np.array_equal(leaf, after[path])
        for path, leaf in jax.tree_util.tree_leaves_with_path(before)
    }


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_frozen_stages_learn_nothing(name: str, tmp_path: pathlib.Path) -> None:
    """And a run of all these settings goes on from its checkpoint as if it had not stopped."""
    config = settings(freeze_stages=1)
    config.optim.name = name
    start, take = training(config)
    first, _ = take(start, 0)
    end, _ = take(first, 1)
    frozen = ("backbone/trunk/conv1/", "backbone/trunk/bn1/", "backbone/trunk/layer1_0/")
    for part in ("params", "batch_stats"):
        for path, differs in moved(getattr(start, part), getattr(end, part)).items():
            assert differs != path.startswith(frozen), (part, path)
    for layer in ("conv1", "bn1", "layer1_0"):
        before, after = (state["backbone"]["trunk"][layer] for state in (start.params, end.ema))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), before, after)

    checkpoints = Checkpoints(str(tmp_path), 1, {})
    checkpoints.save(first)
    checkpoints.wait()
    place = replicated(make_mesh(devices=jax.devices()[:1]))
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), first)
    again, _ = take(checkpoints.restore(1, like), 1)
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, again, end)


@pytest.mark.parametrize("which", ["trunk", "all"])
def test_frozen_statistics(which: str) -> None:
    start, end, metrics = trained(settings(freeze_bn=which))
    assert all(moved(start.params, end.params).values()), "scales and biases learn"
    for path, differs in moved(start.batch_stats, end.batch_stats).items():
        assert differs == (which == "trunk" and "/neck/" in path), path
    if which == "all":  # the network trains as it computes at test
        still = make_step(dataclasses.replace(detector(), net=AtTest()), settings(), 10)
        _, values = jax.jit(still)(start, random_batch(8, 0))
        for key in ("loss", "grad_norm"):
            assert metrics[0][key] == pytest.approx(float(values[key]), rel=1e-4)


class AtTest(Net):
    """The same, which does not hear that it trains."""

    def __call__(self, images: jax.Array, train: bool = False) -> list[dict[str, jax.Array]]:
        return super().__call__(images, False)


def test_two_devices_that_share_parameters_equal_one() -> None:
    config = settings(freeze_stages=1, freeze_bn="trunk")
    _, alone, one = trained(config)
    config.sharding.fsdp = 2
    _, both, two = trained(config, fsdp=2)
    assert two[1]["loss"] == pytest.approx(one[1]["loss"], rel=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), alone.batch_stats, both.batch_stats)


@pytest.mark.parametrize(
    "name, stages, frozen, free",
    [
        ("centernet_r18", 2, ("conv1", "bn1", "layer1_1", "layer2_0"), ("layer3_0",)),
        ("centernet_dla34_nodcn", 2, ("base_layer", "level0", "level1"), ("level2",)),
    ],
)
def test_trunks_of_the_models(name: str, stages: int, frozen: tuple[str, ...], free: tuple[str, ...]) -> None:
    net = kpjax.build(name, 1).net
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False))["params"]
    of_trunk, still = in_trunk(shapes), is_frozen(shapes, stages)
    assert all(jax.tree.leaves(of_trunk["backbone"]["trunk"]))
    assert not any(jax.tree.leaves((of_trunk["backbone"]["neck"], of_trunk["heads"], still["backbone"]["neck"])))
    trunk = still["backbone"]["trunk"]
    assert all(jax.tree.leaves([trunk[layer] for layer in frozen]))
    assert not any(jax.tree.leaves([trunk[layer] for layer in free]))
    assert not any(jax.tree.leaves(is_frozen(shapes, 0)))
    config = settings(name=name, freeze_stages=9)
    with pytest.raises(ConfigError, match=f"freeze_stages is 9, but the trunk of {name} has "):
        check_stages(shapes, config)


def test_what_cannot_be_frozen() -> None:
    config = settings(name="cornernet_hg104", freeze_stages=1)
    with pytest.raises(ConfigError, match="trunk of cornernet_hg104 has none"):
        check_stages({"backbone": {"hourglass0": {"kernel": np.ones(1)}}}, config)
    config.init_from = ""
    with pytest.raises(ConfigError, match=r"freeze_stages is 1.*init_from"):
        config.check()
