"""What an update is made of."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kpjax.config import Config, OptimConfig
from kpjax.training.optimizer import average_decay, learning_rate, make_optimizer, scaled
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


LAYERS = {
    "conv": {"kernel": jnp.ones((1, 2)), "bias": jnp.ones(2)},
    "norm": {"scale": jnp.ones(2), "bias": jnp.ones(2)},
}


def first_update(**settings: Any) -> Any:
    """Of parameters that are 1, by gradients of 0.5."""
    optimizer = make_optimizer(OptimConfig(lr=0.1, **settings), 10)
    return optimizer.update(jax.tree.map(lambda x: 0.5 * x, LAYERS), optimizer.init(LAYERS), LAYERS)[0]


def test_adamw_decays_kernels_beside_adams_update() -> None:
    plain, decayed = first_update(name="adam"), first_update(name="adamw", weight_decay=0.2)
    np.testing.assert_allclose(decayed["conv"]["kernel"], -0.1 * (1 + 0.2), rtol=1e-5)
    for layer, leaf in (("conv", "bias"), ("norm", "scale"), ("norm", "bias")):
        np.testing.assert_array_equal(decayed[layer][leaf], plain[layer][leaf])
    np.testing.assert_allclose(plain["conv"]["kernel"], -0.1, rtol=1e-5)
    same = first_update(name="adamw")
    jax.tree.map(np.testing.assert_array_equal, same, plain)


def test_normalisations_without_decay() -> None:
    found = first_update(name="sgd", weight_decay=0.2, norm_decay=False)
    expected = {"conv": {"kernel": 0.07, "bias": 0.07}, "norm": {"scale": 0.05, "bias": 0.05}}
    jax.tree.map(lambda x, e: np.testing.assert_allclose(x, -e, rtol=1e-5), found, expected)
    found = first_update(name="sgd", weight_decay=0.2, norm_decay=False, bias_decay=False)
    expected["conv"]["bias"] = 0.05
    jax.tree.map(lambda x, e: np.testing.assert_allclose(x, -e, rtol=1e-5), found, expected)


def muon_update(gradients: Any, params: Any, **settings: Any) -> Any:
    optimizer = make_optimizer(OptimConfig(name="muon", lr=0.1, **settings), 10)
    return optimizer.update(gradients, optimizer.init(params), params)[0]


@pytest.mark.parametrize("shape", [(3, 3, 4, 8), (1, 1, 16, 4), (5, 7)])
def test_muon_moves_kernels_by_orthogonal_matrices(shape: tuple[int, ...]) -> None:
    gradient = jax.random.normal(jax.random.key(0), shape) * 1e-3
    update = muon_update({"kernel": gradient}, {"kernel": jnp.ones(shape)})["kernel"]
    matrix, rows = np.asarray(update).reshape(-1, shape[-1]), np.asarray(gradient).reshape(-1, shape[-1])
    # Newton and Schulz's five iterations bring all singular values near one, as is their aim, not to it.
    values = np.linalg.svd(matrix, compute_uv=False) / (0.1 * 0.2 * np.sqrt(max(matrix.shape)))
    assert values.min() > 0.6 and values.max() < 1.3
    u, _, v = np.linalg.svd(rows, full_matrices=False)
    nearest = u @ v
    cosine = -(matrix * nearest).sum() / np.linalg.norm(matrix) / np.linalg.norm(nearest)
    assert cosine > 0.97


def test_muon_leaves_the_rest_to_nadam_and_decays_kernels_alone() -> None:
    gradients = jax.tree.map(lambda x: 0.5 * x, LAYERS)
    plain, decayed = muon_update(gradients, LAYERS), muon_update(gradients, LAYERS, weight_decay=0.2)
    nadam = optax.nadam(0.1).update(gradients, optax.nadam(0.1).init(LAYERS))[0]
    for layer, leaf in (("conv", "bias"), ("norm", "scale"), ("norm", "bias")):
        np.testing.assert_allclose(plain[layer][leaf], nadam[layer][leaf], rtol=1e-6)
        np.testing.assert_array_equal(decayed[layer][leaf], plain[layer][leaf])
    np.testing.assert_allclose(decayed["conv"]["kernel"] - plain["conv"]["kernel"], -0.1 * 0.2, rtol=1e-4)
    still = muon_update(jax.tree.map(jnp.zeros_like, LAYERS), LAYERS)  # as layers are that are frozen
    jax.tree.map(lambda x: np.testing.assert_array_equal(x, 0 * x), still)


@pytest.mark.parametrize("name", ["adam", "adamw", "muon", "sgd"])
def test_a_trunk_can_learn_more_slowly(name: str) -> None:
    params = {"backbone": {"trunk": LAYERS, "neck": LAYERS, "stem": LAYERS}, "heads": LAYERS}
    slopes = jax.tree.map(lambda x: 0.5 * x, params)

    def update(**settings: Any) -> Any:
        optimizer = make_optimizer(OptimConfig(name=name, lr=0.1, weight_decay=0.2, **settings), 10)
        return optimizer.update(slopes, optimizer.init(params), params)[0]

    plain, slow = update(), update(trunk_lr=0.25)
    part = {"backbone": {"trunk": 0.25, "neck": 1.0, "stem": 0.25}, "heads": 1.0}  # an hourglass begins with its stem
    for path, whole in jax.tree_util.tree_leaves_with_path(plain):
        factor, found = part[path[0].key], slow
        for key in path:
            found = found[key.key]
        factor = factor[path[1].key] if isinstance(factor, dict) else factor
        np.testing.assert_allclose(found, factor * whole, rtol=1e-6)


def test_a_cosine_can_end_above_zero() -> None:
    rate = learning_rate(OptimConfig(lr=0.1, schedule="cosine", final_lr=0.05, warmup_steps=10), 100)
    assert [float(rate(step)) for step in (0, 50, 100, 200)] == pytest.approx([0.0, 0.0525, 0.005, 0.005])


def test_a_rate_is_held_and_then_falls_in_a_line() -> None:
    settings = {"lr": 0.1, "schedule": "wsd", "warmup_steps": 10}
    rate = learning_rate(OptimConfig(**settings, hold=0.5, final_lr=0.2), 100)
    assert [float(rate(step)) for step in (0, 5, 10, 50, 75, 100)] == pytest.approx([0, 0.05, 0.1, 0.1, 0.06, 0.02])
    falling = learning_rate(OptimConfig(**settings), 100)
    assert [float(falling(step)) for step in (10, 50, 100)] == pytest.approx([0.09, 0.05, 0.0])
    assert float(learning_rate(OptimConfig(**settings, hold=1.0), 100)(90)) == pytest.approx(0.1)


def test_new_settings_leave_the_state_as_it_was() -> None:
    """Checkpoints of before can be read: each transformation that is not asked for has no place in the state."""
    for settings, before in (
        ({"name": "adam"}, optax.chain(optax.adam(lambda step: 0.1))),
        (
            {"name": "sgd", "clip": 35.0, "weight_decay": 0.1},
            optax.chain(
                optax.clip_by_global_norm(35.0),
                optax.add_decayed_weights(0.1),
                optax.sgd(lambda step: 0.1, momentum=0.9),
            ),
        ),
    ):
        state = make_optimizer(OptimConfig(**settings), 10).init(PARAMS)
        assert jax.tree.structure(state) == jax.tree.structure(before.init(PARAMS))


def test_the_average_follows_faster_at_first() -> None:
    config = OptimConfig(ema=0.99, ema_tau=20.0)
    found = [float(average_decay(config, jnp.int32(step))) for step in (1, 20, 1000)]
    assert found == pytest.approx([0.99 * (1 - np.exp(-1 / 20)), 0.99 * (1 - np.exp(-1)), 0.99])
    assert average_decay(OptimConfig(ema=0.99), jnp.int32(1)) == 0.99
    config = tiny_config()
    config.optim.ema, config.optim.ema_tau = 0.99, 20.0
    detector = two_layer_detector()
    state = init_state(detector, config, 10, jax.random.key(0))
    step = jax.jit(make_step(detector, config, 10))
    expected = state.params
    for number in range(2):
        state, _ = step(state, random_batch(8, number))
        keep = 0.99 * (1 - np.exp(-(number + 1) / 20))
        expected = jax.tree.map(lambda e, p, k=keep: k * e + (1 - k) * p, expected, state.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), state.ema, expected)
