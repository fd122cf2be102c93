"""The training step: sharding, accumulation, optimisers and bad steps, each against a plain computation."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import kpjax
from kpjax.config import Config, OptimConfig
from kpjax.detectors.base import Detector
from kpjax.objects import Objects, Placed
from kpjax.parallel.sharding import make_mesh, put_batch
from kpjax.training.optimizer import learning_rate, make_optimizer
from kpjax.training.step import TrainState, init_state, jit_step, make_step, prepare, state_shardings
from tests.tiny import (
    CLASSES,
    TwoLayers,
    random_batch,
    random_variables,
    tiny_config,
    tiny_detector,
    two_layer_detector,
)


def trained(
    config: Config, detector: Detector, *, devices: int = 1, fsdp: int = 1, batches: list | None = None
) -> tuple[list[TrainState], list[dict]]:
    """On the host: the first state and that after each batch (by default three random ones), each step's metrics."""
    mesh = make_mesh(fsdp, jax.devices()[:devices])
    states, metrics = [first_state(config, detector)], []
    step = jit_step(make_step(detector, config, config.steps, mesh), mesh, states[0])
    state = jax.device_put(states[0], state_shardings(mesh, states[0]))
    for batch in batches or [random_batch(config.batch, i) for i in range(3)]:
        state, values = step(state, put_batch(batch, mesh))
        # Copies: on a CPU the host's arrays are the device's own, which the next step writes to.
        states.append(jax.tree.map(np.array, state))
        metrics.append(jax.device_get(values))
    return states, metrics


def first_state(config: Config, detector: Detector) -> TrainState:
    """Of `init_state`, with random weights of another draw."""
    shapes = jax.eval_shape(lambda: init_state(detector, config, config.steps, jax.random.key(0)))
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    variables = random_variables(detector.net)
    ema = None if shapes.ema is None else jax.tree.map(np.copy, variables["params"])
    return zeros.replace(**variables, ema=ema, first_bad_step=np.int32(-1))


def largest_difference(a: object, b: object) -> float:
    return max(float(np.abs(x - y).max()) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.fixture(scope="module")
def sgd() -> Config:
    # Adam divides a gradient by its own size, rounding errors of tiny ones included: plain SGD shows what
    # the gradients are.
    config = tiny_config()
    config.optim.name = "sgd"
    config.optim.lr = 0.01
    return config


@pytest.fixture(scope="module")
def on_one_device(sgd: Config) -> tuple[list[TrainState], list[dict]]:
    return trained(sgd, tiny_detector())


def test_eight_devices_equal_one(sgd: Config, on_one_device: tuple[list[TrainState], list[dict]]) -> None:
    alone, metrics = on_one_device
    states, sharded_metrics = trained(sgd, tiny_detector(), devices=8)
    # Three steps move parameters by 0.01 or more; the two differ by the order of float32 sums.
    assert largest_difference(alone[3].params, alone[0].params) > 0.01
    assert largest_difference(alone[3].params, states[3].params) < 2e-5
    assert largest_difference(alone[3].batch_stats, states[3].batch_stats) < 2e-5
    for one, eight in zip(metrics, sharded_metrics, strict=True):
        assert eight["loss"] == pytest.approx(one["loss"], rel=1e-5)


def test_ttfnet_on_eight_devices_equals_one() -> None:
    """Its targets for every cell, of windows that each image draws until one fits."""
    config = tiny_config()
    config.optim.name, config.optim.lr = "sgd", 1e-3
    config.augment.kind, config.augment.clip_boxes = "patch", True
    detector = dataclasses.replace(kpjax.build("ttfnet_r18", CLASSES), net=TwoLayers(more=(("sides", 4),)))
    (alone, metrics), (states, sharded) = (trained(config, detector, devices=count) for count in (1, 8))
    assert largest_difference(alone[3].params, alone[0].params) > 1e-3
    assert largest_difference(alone[3].params, states[3].params) < 2e-5
    for one, eight in zip(metrics, sharded, strict=True):
        assert one["sides"] > 0
        for name in ("loss", "heatmap", "sides", "grad_norm"):
            assert eight[name] == pytest.approx(one[name], rel=1e-4), name


def wide_detector() -> Detector:
    """Nearly all of its numbers lie in kernels that fsdp divides."""
    return dataclasses.replace(two_layer_detector(), net=TwoLayers(width=1024))


def test_fsdp_divides_state_and_memory() -> None:
    """Parameters, Adam's two averages and the moving average: an eighth on each of eight devices."""
    config = tiny_config()
    config.optim.ema = 0.9
    detector = wide_detector()
    shapes = jax.eval_shape(lambda: init_state(detector, config, config.steps, jax.random.key(0)))
    batch = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, random_batch(8)))
    sizes, alias = {}, {}
    for fsdp in (1, 8):
        mesh = make_mesh(fsdp)
        memory = jit_step(make_step(detector, config, config.steps, mesh), mesh, shapes).lower(shapes, batch)
        found = memory.compile().memory_analysis()
        sizes[fsdp], alias[fsdp] = found.argument_size_in_bytes, found.alias_size_in_bytes
    state = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))
    of_batch = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(batch)) / 8
    assert sizes[1] == pytest.approx(state + of_batch, rel=0.01)
    # Small arrays stay whole: BatchNorm's and biases.
    small = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes) if x.size < 2**14)
    assert sizes[8] == pytest.approx((state - small) / 8 + small + of_batch, rel=0.01)
    assert sizes[8] < 0.3 * sizes[1]
    assert alias[8] > 0.9 * (sizes[8] - of_batch)  # the old state's memory is the new one's


@pytest.mark.parametrize(("fsdp", "name"), [(2, "sgd"), (8, "sgd"), (2, "muon")])
def test_fsdp_equals_one_device(fsdp: int, name: str) -> None:
    config = tiny_config()
    config.optim.name, config.optim.lr, config.optim.ema = name, 1e-3, 0.9
    alone, metrics = trained(config, wide_detector())
    states, divided = trained(config, wide_detector(), devices=8, fsdp=fsdp)
    assert largest_difference(alone[3].params, alone[0].params) > (3e-3 if name == "muon" else 1e-2)
    for part in ("params", "batch_stats", "opt_state", "ema"):
        # Muon divides a gradient by its size, rounding errors included.
        most = 2e-4 if name == "muon" else 2e-5
        assert largest_difference(getattr(alone[3], part), getattr(states[3], part)) < most, part
    for one, eight in zip(metrics, divided, strict=True):
        assert eight["loss"] == pytest.approx(one["loss"], rel=1e-5)


def test_bfloat16_trains_with_float32_parameters(
    on_one_device: tuple[list[TrainState], list[dict]], sgd: Config
) -> None:
    states, metrics = trained(sgd, tiny_detector(dtype="bfloat16"))
    assert all(m["ok"] and np.isfinite(m["loss"]) for m in metrics)
    assert {leaf.dtype for leaf in jax.tree.leaves((states[3].params, states[3].batch_stats))} == {np.dtype("float32")}
    # It is the same training, to the precision of bfloat16's eight bits; and it is not float32 by mistake.
    assert metrics[0]["loss"] == pytest.approx(on_one_device[1][0]["loss"], rel=0.02)
    assert metrics[0]["loss"] != on_one_device[1][0]["loss"]


def test_accumulation_equals_one_step_with_grouped_statistics() -> None:
    config = tiny_config(batch=16)
    config.optim.name, config.optim.lr = "sgd", 1e-3
    whole, metrics = trained(config, two_layer_detector(bn_groups=4))
    ungrouped, _ = trained(config, two_layer_detector(bn_groups=1))
    config.optim.accumulate = 4
    parts, accumulated = trained(config, two_layer_detector(), devices=4)
    assert largest_difference(whole[3].params, whole[0].params) > 1e-2
    assert largest_difference(whole[3].params, parts[3].params) < 1e-5
    assert largest_difference(whole[3].batch_stats, parts[3].batch_stats) < 1e-5  # moved once a step, not four times
    assert largest_difference(whole[3].params, ungrouped[3].params) > 1e-4  # or groups would make no difference
    for a, b in zip(metrics, accumulated, strict=True):
        for name in ("loss", "heatmap", "wh", "offset", "grad_norm"):
            assert b[name] == pytest.approx(a[name], rel=1e-4), name


@pytest.mark.parametrize("where", ["loss", "gradient", "update"])
def test_a_bad_step_changes_nothing(where: str) -> None:
    config = tiny_config()
    config.optim.name, config.optim.ema = "sgd", 0.9
    plain = tiny_detector()

    def encode(objects: Objects, placed: Placed) -> dict:
        targets = plain.encode(dataclasses.replace(objects, labels=jnp.maximum(objects.labels, 0)), placed)
        return {**targets, "broken": (objects.labels < 0).any()}

    def loss(outputs: list, targets: dict, counts: dict) -> tuple:
        total, parts = plain.loss(outputs, targets, counts)
        broken = targets["broken"].any()
        if where == "loss":
            return jnp.where(broken, jnp.nan, total), parts
        if where == "gradient":  # the value stays finite, its derivative does not
            return total + jnp.sqrt(jnp.where(broken, 0 * outputs[-1]["wh"].sum(), 1.0)), parts
        return total * jnp.where(broken, 1e10, 1e-33), parts

    if where == "update":  # finite gradients, times a rate that takes those of the bad step beyond float32
        config.optim.lr = 1e30
    detector = dataclasses.replace(two_layer_detector(), encode=encode, loss=loss)
    batches = [random_batch(8, i) for i in range(3)]
    objects = batches[1]["objects"]
    batches[1]["objects"] = dataclasses.replace(objects, labels=np.full_like(objects.labels, -1))
    (_, before, _, after), metrics = trained(config, detector, batches=batches)
    assert [bool(m["ok"]) for m in metrics] == [True, False, False]
    assert np.isfinite(metrics[1]["loss"]) == (where != "loss")
    assert np.isfinite(metrics[1]["grad_norm"]) == (where != "gradient")
    assert after.first_bad_step == 1 and before.first_bad_step == -1
    for name in ("params", "batch_stats", "opt_state", "ema"):
        assert largest_difference(getattr(before, name), getattr(after, name)) == 0, name


def test_the_moving_average_follows_the_parameters() -> None:
    config = tiny_config()
    config.optim.ema = 0.75
    detector = two_layer_detector()
    states, _ = trained(config, detector)
    average = states[0].params
    for state in states[1:]:
        average = jax.tree.map(lambda a, p: 0.75 * a + 0.25 * p, average, state.params)
        assert largest_difference(average, state.ema) < 1e-6
    assert largest_difference(states[3].ema, states[3].params) > 1e-4


def test_each_image_draws_by_its_counter() -> None:
    config = tiny_config()
    config.augment.kind, config.augment.color, config.augment.lighting = "shift", 0.4, 0.1
    detector = tiny_detector()
    batch = random_batch(4)
    make = jax.jit(lambda b: prepare(detector, config, b))
    images, targets = make(batch)
    order = np.array([2, 0, 3, 1])
    again, shuffled = make(jax.tree.map(lambda x: x[order], batch))
    np.testing.assert_array_equal(np.asarray(images)[order], again)
    np.testing.assert_array_equal(np.asarray(targets["heatmap"])[order], shuffled["heatmap"])
    others, _ = make({**batch, "counter": batch["counter"] + 4})
    assert all(np.abs(np.asarray(images) - np.asarray(others)).max((1, 2, 3)) > 0.1)


def test_the_loss_falls_on_eight_images(sgd: Config) -> None:
    config = tiny_config(steps=40)
    config.optim.lr = 0.01
    config.augment.kind = "none"
    config.augment.flip = config.augment.color = config.augment.lighting = 0.0
    batch = random_batch(8)
    rng = np.random.default_rng(0)
    batch["canvas"] = np.zeros_like(batch["canvas"])
    objects = batch["objects"]
    for image, boxes, labels, valid in zip(batch["canvas"], objects.boxes, objects.labels, objects.valid, strict=True):
        for (x0, y0, x1, y1), label in zip(boxes[valid].astype(int), labels[valid], strict=True):
            image[y0:y1, x0:x1] = rng.integers(40, 90)
            image[y0:y1, x0:x1, label] = 255
    _, metrics = trained(config, tiny_detector(), batches=[batch] * 40)
    losses = [float(m["loss"]) for m in metrics]
    assert np.mean(losses[-5:]) < 0.6 * losses[0]


# Optimisers and schedules, against PyTorch's rules written out.


def torch_adam(p: np.ndarray, grads: list[np.ndarray], lr: float, decay: float) -> np.ndarray:
    m = v = np.zeros_like(p)
    for t, g in enumerate(grads, 1):
        g = g + decay * p
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        p = p - lr * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return p


def torch_sgd(p: np.ndarray, grads: list[np.ndarray], lr: float, decay: float, momentum: float) -> np.ndarray:
    buffer = np.zeros_like(p)
    for g in grads:
        buffer = momentum * buffer + g + decay * p
        p = p - lr * buffer
    return p


@pytest.mark.parametrize("clip", [0.0, 1.5])
@pytest.mark.parametrize("decay", [0.0, 0.05])
@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_updates_are_those_of_pytorch(name: str, decay: float, clip: float) -> None:
    rng = np.random.default_rng(3)
    p = rng.normal(size=7)
    grads = [rng.normal(size=7) for _ in range(4)]
    config = OptimConfig(name=name, lr=0.03, weight_decay=decay, clip=clip, momentum=0.8)
    optimizer = make_optimizer(config, 100)
    params = jnp.asarray(p, jnp.float32)
    state = optimizer.init(params)
    for g in grads:
        updates, state = optimizer.update(jnp.asarray(g, jnp.float32), state, params)
        params = optax.apply_updates(params, updates)
    if clip:
        assert any(np.linalg.norm(g) > clip for g in grads)
        grads = [g * min(1.0, clip / np.linalg.norm(g)) for g in grads]
    expected = torch_adam(p, grads, 0.03, decay) if name == "adam" else torch_sgd(p, grads, 0.03, decay, 0.8)
    np.testing.assert_allclose(params, expected, atol=2e-6)


def test_step_schedule_drops_where_the_recipe_says() -> None:
    rate = learning_rate(OptimConfig(lr=0.5, drops=(0.5, 0.75), gamma=0.1), 200)
    expected = {0: 0.5, 99: 0.5, 100: 0.05, 149: 0.05, 150: 0.005, 199: 0.005}
    assert {s: pytest.approx(v) for s, v in expected.items()} == {s: float(rate(s)) for s in expected}


def test_warm_up_is_linear() -> None:
    rate = learning_rate(OptimConfig(lr=0.4, warmup_steps=10, warmup_start=0.25), 100)
    assert [float(rate(s)) for s in (0, 5, 10, 60)] == pytest.approx([0.1, 0.25, 0.4, 0.4])


def test_cosine_schedule_ends_at_zero() -> None:
    rate = learning_rate(OptimConfig(lr=0.2, schedule="cosine", warmup_steps=4), 80)
    for s in (0, 1, 20, 40, 79, 80):
        assert float(rate(s)) == pytest.approx(0.1 * (1 + math.cos(math.pi * s / 80)) * min(s / 4, 1), abs=1e-7)
