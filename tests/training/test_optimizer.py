"""What an update is made of."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kpjax.config import Config, OptimConfig
from kpjax.training.optimizer import learning_rate, make_optimizer, scaled
from kpjax.training.step import init_state, make_step
from tests.tiny import random_batch, tiny_config, two_layer_detector

PARAMS = {
    "neck": {"conv": {"kernel": np.ones(3, np.float32), "offset": {"kernel": np.ones(2, np.float32)}}},
    "heads": {"offset_out": {"kernel": np.ones(2, np.float32)}},  # the centre's offset, not a sample's
}


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_offsets_of_deformable_convolutions_can_learn_more_slowly(name: str) -> None:
    def update(**settings: Any) -> Any:
        optimizer = make_optimizer(OptimConfig(name=name, lr=0.1, **settings), steps=10)
        updates, _ = optimizer.update(jax.tree.map(np.ones_like, PARAMS), optimizer.init(PARAMS), PARAMS)
        return updates

    plain, slow = update(), update(offset_lr=0.25)
    np.testing.assert_allclose(slow["neck"]["conv"]["offset"]["kernel"], plain["neck"]["conv"]["offset"]["kernel"] / 4)
    for tree in (plain, slow):
        np.testing.assert_allclose(tree["neck"]["conv"]["kernel"], -0.1, rtol=1e-4)
        np.testing.assert_allclose(tree["heads"]["offset_out"]["kernel"], -0.1, rtol=1e-4)


def recipe(batch: int, **optim: Any) -> Config:
    """Rate 0.01 for 32 images a step, at another batch."""
    return Config(batch=batch, steps=8000, optim=OptimConfig(lr=0.01, lr_batch=32, **optim)).check()


def test_rates_follow_the_batch_only_where_asked() -> None:
    assert scaled(recipe(256)) == recipe(256).optim
    assert scaled(recipe(32, scale_lr="linear", warmup_steps=500)).lr == 0.01


@pytest.mark.parametrize("batch", [8, 16, 64, 256])
def test_linear_scaling_keeps_the_climb_of_a_warm_up(batch: int) -> None:
    """k times the rate after k times the steps; a raised rate begins where the recipe's does."""
    k = batch / 32
    optim = scaled(recipe(batch, scale_lr="linear", warmup_steps=1000, warmup_start=0.1))
    rate, plain = (learning_rate(o, 40_000) for o in (optim, recipe(32, warmup_steps=1000, warmup_start=0.1).optim))
    assert optim.warmup_steps == 1000 * k
    assert float(rate(optim.warmup_steps)) == pytest.approx(0.01 * k) == pytest.approx(k * float(plain(1000)))
    assert float(rate(0)) == pytest.approx(0.001 if k > 1 else 0.001 * k)
    middle = float(rate(optim.warmup_steps / 2) - rate(optim.warmup_steps / 4)) / (optim.warmup_steps / 4)
    assert middle == pytest.approx(0.009 / 1000, rel=0.15)


def test_a_raised_rate_is_warmed_up_in_any_case() -> None:
    optim = scaled(recipe(320, scale_lr="linear"))
    rate = learning_rate(optim, 8000)
    assert optim.warmup_steps == 1000
    assert [float(rate(step)) for step in (0, 500, 1000, 5000)] == pytest.approx([0.01, 0.055, 0.1, 0.1])
    assert scaled(recipe(320, scale_lr="linear", scale_warmup=300)).warmup_steps == 300
    assert scaled(recipe(8, scale_lr="linear")).warmup_steps == 0


@pytest.mark.parametrize("steps", [1000, 30, 4, 1])
def test_drops_that_fall_on_one_step_all_count(steps: int) -> None:
    """Of a short run 0.70 and 0.71 are the same step; one of 0.999 comes before the end or with it."""
    rate = learning_rate(OptimConfig(lr=1.0, gamma=0.1, drops=(0.70, 0.71, 0.999)), steps)
    assert float(rate(steps + 1)) == pytest.approx(1e-3)
    if steps == 30:
        assert [float(rate(step)) for step in (20, 22, 29)] == pytest.approx([1.0, 0.01, 0.01])


def test_the_step_uses_the_scaled_rate() -> None:
    config = tiny_config(batch=16)
    config.optim.name, config.optim.momentum = "sgd", 0.0
    config.optim.scale_lr, config.optim.lr_batch, config.optim.scale_warmup = "linear", 4, 2
    detector = two_layer_detector()
    state = init_state(detector, config, 10, jax.random.key(0))
    step = jax.jit(make_step(detector, config, 10))
    rates = []
    for number in range(4):
        state, metrics = step(state, random_batch(16, number))
        rates.append(float(metrics["lr"]))
    assert rates == pytest.approx([config.optim.lr * k for k in (1, 2.5, 4, 4)])


def test_biases_with_a_rate_of_their_own_and_without_decay() -> None:
    """As two groups of PyTorch's SGD: momentum is of the undecayed gradient, the rate twice the others'."""
    params = {"conv": {"kernel": jnp.ones(2), "bias": jnp.ones(2)}, "bn1": {"bias": jnp.ones(2)}}
    slopes = jax.tree.map(lambda x: 0.5 * x, params)
    config = OptimConfig(name="sgd", lr=0.1, momentum=0.9, weight_decay=0.01, bias_lr=2.0, bias_decay=False)
    optimizer = make_optimizer(config, 10)
    state, expected = optimizer.init(params), {"kernel": 1.0, "bias": 1.0}
    speed = {"kernel": 0.0, "bias": 0.0}
    for _ in range(3):
        updates, state = optimizer.update(slopes, state, params)
        params = optax.apply_updates(params, updates)
        for key, rate, decay in (("kernel", 0.1, 0.01), ("bias", 0.2, 0.0)):
            speed[key] = 0.9 * speed[key] + 0.5 + decay * expected[key]
            expected[key] -= rate * speed[key]
    for key, value in expected.items():
        assert params["conv"][key] == pytest.approx(value)
    assert params["bn1"]["bias"] == pytest.approx(expected["kernel"])
