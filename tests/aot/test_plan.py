"""Plans of a step, compiled for the eight devices here in place of a slice's."""

from __future__ import annotations

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kpjax
from kpjax.aot import gpu
from kpjax.aot import plan as plans
from kpjax.aot.topology import Topology
from kpjax.aot.tpu import parse_topology
from kpjax.config import Config
from kpjax.errors import ConfigError, UserError
from tests.tiny import tiny_config


@given(
    unit=st.integers(1, 64),
    fixed=st.integers(0, 10_000),
    slope=st.integers(1, 500),
    bend=st.floats(0, 0.02),
    first=st.integers(1, 100),
    available=st.integers(1, 60_000),
)
def test_the_largest_batch_was_compiled_and_fits(
    unit: int, fixed: int, slope: int, bend: float, first: int, available: int
) -> None:
    """Whatever memory grows like, as long as it grows; in a straight line the answer is exact."""
    asked: list[int] = []

    def memory(batch: int) -> int:
        return round(fixed + slope * batch / unit * (1 + bend * (batch / unit) ** 0.5))

    def measure(batch: int) -> int:
        assert batch % unit == 0 and batch not in asked
        asked.append(batch)
        return memory(batch)

    batch = first * unit
    best = plans.largest_batch(measure, unit, batch, memory(batch), available)
    assert len(asked) < plans._TRIES
    assert best % unit == 0 and best in {0, batch, *asked}
    assert not best or memory(best) <= available
    if memory(batch) <= available:
        assert best >= batch
    if bend == 0 and (best or memory(unit) <= available):
        assert memory(best + unit) > available >= memory(best)


def test_batches_go_in_steps_of_chips_groups_and_micro_batches() -> None:
    config = Config(batch=96, steps=1)
    config.model.bn_groups, config.optim.accumulate = 6, 4
    assert plans.smallest_step(16, config, evaluation=False) == 48 * 4
    assert plans.smallest_step(16, config, evaluation=True) == 16
    with pytest.raises(ConfigError, match="bn_groups = 6 does not divide"):
        plans.with_batch(config, 100, evaluation=False)


@pytest.mark.parametrize(
    "resolution, preset, canvas",
    [("keep", "na", (672, 672)), ("keep", "ms", (992, 992)), ("fixed", "na", (64, 64))],
)
def test_the_canvas_of_a_test_step(resolution: str, preset: str, canvas: tuple[int, int]) -> None:
    config = tiny_config()
    config.eval.resolution, config.eval.preset = resolution, preset
    assert plans.canvas_of(kpjax.build("centernet_r18", 80), config) == canvas


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch) -> Topology:
    """A slice of eight chips whose programs are compiled for the devices here."""
    monkeypatch.setattr(Topology, "devices", lambda self: jax.devices())
    return parse_topology("v5e:2x4")


def test_a_training_step(eight: Topology) -> None:
    plan = plans.make_plan(eight, tiny_config(batch=16), False, (64, 64), classes=3)
    assert plan.fits and plan.work is not None and plan.batch == 16
    assert plan.work.flops > 1e6 and plan.work.moved > 1e6 and plan.memory.total > 2**16
    found = plan.work.collectives
    assert found["gradients"] and found["BatchNorm"]
    assert all(one.group == 8 for one in found["gradients"] + found["BatchNorm"])
    # all of the network's parameters but BatchNorm's
    shapes = jax.eval_shape(lambda: plan.detector.net.init(jax.random.key(0), jax.numpy.zeros((1, 64, 64, 3))))
    parameters = 4 * sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    assert 0.8 * parameters < sum(one.bytes for one in found["gradients"]) <= parameters


def test_a_test_step(eight: Topology) -> None:
    plan = plans.make_plan(eight, tiny_config(), True, (64, 96), classes=3)
    assert plan.batch == 8 and plan.fits and plan.work is not None
    sent = {purpose: ones for purpose, ones in plan.work.collectives.items() if ones}
    assert set(sent) == {"detections"}, "nothing but what was found leaves a chip"


def test_batches_that_the_chips_do_not_divide(eight: Topology) -> None:
    with pytest.raises(ConfigError, match="use 8 or 16"):
        plans.make_plan(eight, tiny_config(batch=12), False, (64, 64), classes=3)
    config = tiny_config()
    config.eval.batch = 12
    with pytest.raises(ConfigError, match=r"config\.eval\.batch is 12"):
        plans.make_plan(eight, config, True, (64, 64), classes=3)


@pytest.mark.parametrize("evaluation", [False, True])
def test_a_step_of_3d_boxes(eight: Topology, evaluation: bool) -> None:
    """The test step takes a camera for each image, divided as the images are."""
    config = tiny_config(batch=16)
    config.model.name, config.eval.resolution = "centernet_r18_3d", "fixed"
    plan = plans.make_plan(eight, config, evaluation, (64, 96), classes=3)
    assert plan.fits and plan.work is not None
    sent = {purpose for purpose, ones in plan.work.collectives.items() if ones}
    assert sent == {"detections"} if evaluation else "other" not in sent


@pytest.mark.parametrize("name, asked", [("h100:8", True), ("v5e:2x4", False)])
def test_deterministic_programs_are_compiled_as_such(name: str, asked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, object]] = []

    def refuse(self: object, compiler_options: dict[str, object] | None = None) -> None:
        given.append(compiler_options or {})
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Used 20.50G of 15.75G hbm.")

    monkeypatch.setattr(Topology, "devices", lambda self: jax.devices())
    monkeypatch.setattr("jax.stages.Lowered.compile", refuse)
    topology = gpu.parse_topology(name) if asked else parse_topology(name)
    config = tiny_config()
    for deterministic in (False, True):
        config.deterministic = deterministic
        assert not plans.make_plan(topology, config, True, (64, 64), classes=3).fits
    assert [one.get("xla_gpu_deterministic_ops", False) for one in given] == [False, asked]
    assert bool(given[0]) == asked


@pytest.mark.parametrize(
    "text", ["UNAVAILABLE: No PTX compilation provider is available.\n - a", "INTERNAL: libdevice not found at ./b.bc"]
)
def test_a_missing_assembler_is_one_line(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object, compiler_options: dict[str, object] | None = None) -> None:
        raise jax.errors.JaxRuntimeError(text)

    monkeypatch.setattr(Topology, "devices", lambda self: jax.devices())
    monkeypatch.setattr("jax.stages.Lowered.compile", refuse)
    with pytest.raises(UserError, match=r"ptxas.*nvidia-cuda-nvcc-cu12") as caught:
        plans.make_plan(gpu.parse_topology("h100:8"), tiny_config(), True, (64, 64), classes=3)
    assert "\n" not in str(caught.value)
