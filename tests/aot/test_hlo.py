"""Reading compiled programs: collectives of programs compiled here for eight devices, and of a TPU's text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

import kpjax
from kpjax.aot.hlo import Collective, counts_loops_once, memory_refused, read_collectives, sort_by_purpose
from kpjax.aot.roofline import largest_fitting, roofline
from kpjax.aot.tpu import CHIPS, parse_topology
from kpjax.detectors.base import Detector
from kpjax.parallel.compiling import Memory, memory_of
from kpjax.parallel.sharding import make_mesh
from kpjax.training.step import batch_shapes, init_state, jit_step, make_step
from tests.tiny import tiny_config, two_layer_detector


def collectives(
    function: Any, shape: tuple[int, ...], spec: PartitionSpec, out: Any, fsdp: int = 1
) -> list[Collective]:
    """Those of a function compiled for the eight devices under shard_map."""
    mesh = make_mesh(fsdp)
    mapped = jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=out, check_vma=False)
    argument = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
    return read_collectives(jax.jit(mapped).lower(argument).compile().as_text(), 8)


def test_each_kind_of_collective() -> None:
    rows = PartitionSpec("data")
    everywhere = PartitionSpec()
    (one,) = collectives(lambda x: lax.psum(x, "data"), (8, 100), rows, everywhere)
    assert (one.op, one.group, one.times, one.bytes) == ("all-reduce", 8, 1, 400)
    assert one.sent == pytest.approx(2 * 7 / 8 * 400)
    (one,) = collectives(lambda x: lax.all_gather(x, "data", tiled=True), (8, 100), rows, everywhere)
    assert (one.op, one.group, one.bytes) == ("all-gather", 8, 3200)
    assert one.sent == pytest.approx(7 * 400)
    (one,) = collectives(lambda x: lax.psum_scatter(x, "data", tiled=True), (64, 100), rows, rows)
    assert (one.op, one.group, one.bytes) == ("reduce-scatter", 8, 3200)
    assert one.sent == pytest.approx(7 * 400)
    (one,) = collectives(lambda x: lax.ppermute(x, "data", [(i, (i + 1) % 8) for i in range(8)]), (8, 100), rows, rows)
    assert (one.op, one.bytes, one.sent) == ("collective-permute", 400, 400)


def test_groups_are_those_of_the_axis() -> None:
    both = PartitionSpec(("data", "fsdp"))
    (over_fsdp,) = collectives(lambda x: lax.psum(x, "fsdp"), (8, 3), both, PartitionSpec("data"), fsdp=2)
    (over_data,) = collectives(lambda x: lax.psum(x, "data"), (8, 3), both, PartitionSpec("fsdp"), fsdp=2)
    assert (over_fsdp.group, over_data.group) == (2, 4)
    assert over_fsdp.groups != over_data.groups
    assert not collectives(lambda x: lax.psum(x, "fsdp"), (8, 3), both, both, fsdp=1), "nobody to exchange with"


def test_a_loop_counts_as_often_as_it_runs() -> None:
    def looped(x: jax.Array) -> jax.Array:
        def body(total: jax.Array, _: Any) -> tuple[jax.Array, None]:
            return jnp.tanh(lax.psum(total, "data")), None

        return lax.scan(body, lax.psum(x[:, :2], "data") @ jnp.ones((2, 5)), None, length=6)[0]

    found = collectives(looped, (8, 100), PartitionSpec("data"), PartitionSpec())
    assert sorted((one.times, one.bytes) for one in found) == [(1, 8), (6, 20)]


@pytest.fixture(autouse=True)
def without_the_cache() -> Iterator[None]:
    """A program from the persistent cache has the names of whoever compiled it: they are no part of its key."""
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", True)


def training(fsdp: int, detector: Detector | None = None, **model: Any) -> tuple[Any, dict[str, list[Collective]]]:
    """A step, by default the two-layer detector's, compiled for the eight devices, and its collectives."""
    config = tiny_config(batch=16)
    detector = detector or two_layer_detector(**model)
    mesh = make_mesh(fsdp)
    state = jax.eval_shape(lambda key: init_state(detector, config, 10, key), jax.random.key(0))
    step = jit_step(make_step(detector, config, 10, mesh), mesh, state)
    compiled = step.lower(state, batch_shapes(config, detector)).compile()
    shapes = [leaf.shape for leaf in jax.tree.leaves(state.params)]
    found = read_collectives(compiled.as_text(), mesh.size)
    return compiled, sort_by_purpose(found, parameters=shapes, norms=["bn"], fsdp=fsdp)


def test_a_training_step_exchanges_gradients_and_statistics() -> None:
    compiled, found = training(fsdp=1)
    # The stem and three 3x3 heads of 2, 2 and 3 channels; the backward sums of BatchNorm are its own gradients.
    network = 4 * (4 * 4 * 3 * 4 + (9 * 4 + 1) * 7)
    assert network <= sum(one.bytes for one in found["gradients"]) <= network + 4 * 8
    assert all(one.group == 8 for one in found["gradients"])
    assert found["BatchNorm"] and sum(one.bytes for one in found["BatchNorm"]) <= 16 * 4 * 4
    assert not found["other"] and not found["parameters"]
    memory = memory_of(compiled)
    assert memory.total >= memory.arguments + memory.temporaries > 0


def test_fsdp_gathers_parameters_and_sends_no_activations() -> None:
    """Left to itself, the compiler joins the parts of the heads' kernels with all-to-alls and computes with parts."""
    detector = kpjax.build("centernet_r18", num_classes=3, width=8, deconv=(32,), head_channels=64)
    _, found = training(fsdp=2, detector=detector)
    assert len(found["parameters"]) == 3  # the deconvolution's kernel and two of the three heads'; others are small
    # Convolutions that go image after image, as they do on a CPU alone, send edges of the batch.
    assert not {one.op for one in found["other"]} & {"all-gather", "all-to-all"}


def test_groups_of_batchnorm_on_their_device_exchange_nothing() -> None:
    _, found = training(fsdp=1, bn_groups=8)
    assert not found["BatchNorm"] and found["gradients"]
    # XLA may join them with the gradients, which nothing waits for either.
    assert any("running_statistics" in one.scope for one in found["gradients"] + found["running statistics"])
    _, found = training(fsdp=1, bn_groups=4)
    assert {one.group for one in found["BatchNorm"]} == {2}


# Lines as libtpu writes them, cut to what is read.
TPU = """HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
}

%all-reduce-scatter.2 (input_0: f32[3,3,64,64]) -> f32[3,3,32,64] {
  %input_0 = f32[3,3,64,64]{3,2,1,0:T(8,128)} parameter(0)
  %all-reduce.9 = f32[3,3,64,64]{3,2,1,0:T(8,128)} all-reduce(%input_0), channel_id=7, replica_groups={{0,1},{2,3}}, to_apply=%add
}

%fused_computation.1 (p: bf16[3,3,64,32]) -> bf16[3,3,64,64] {
  ROOT %all-gather.1 = bf16[3,3,64,64]{3,2,1,0} all-gather(%p), channel_id=5, replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_1'}, metadata={op_name="state.params[\\'conv\\'][\\'kernel\\']"}
}

%async_collective_fusion.2 (p: bf16[3,3,64,32]) -> bf16[3,3,64,64] {
  ROOT %all-gather.2 = bf16[3,3,64,64]{3,2,1,0} all-gather(%p), channel_id=5, replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_1'}
}

%cond (c: (s32[], f32[8])) -> pred[] {
  %five = s32[]{:T(128)} constant(5)
  ROOT %lt = pred[]{:T(512)} compare(%i, %five), direction=LT
}

%body (c: (s32[], f32[8])) -> (s32[], f32[8]) {
  %all-reduce.8 = (f32[1,8]{1,0:T(128)S(1)}, /*index=1*/f32[1,8]{1,0}) all-reduce(%x, %y), channel_id=3, replica_groups=[2,2]<=[4], to_apply=%add, metadata={op_name="jit(step)/jvp(Net)/bn1/reduce_sum"}
}

%never (p: f32[8]) -> f32[8] {
  %all-reduce.7 = f32[8]{0} all-reduce(%p), channel_id=9, replica_groups={{0,1,2,3}}, to_apply=%add
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %fusion.1 = f32[3,3,32,64]{3,2,1,0:T(8,128)S(1)} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.2
  %fusion.2 = bf16[3,3,64,64]{3,2,1,0} fusion(%w), kind=kCustom, calls=%fused_computation.1
  %fusion.3 = bf16[3,3,64,64]{3,2,1,0} fusion(%w), kind=kCustom, calls=%async_collective_fusion.2
  %while.1 = (s32[]{:T(128)}, f32[8]{0}) while(%tuple), condition=%cond, body=%body
  %all-reduce-start.1 = f32[3,3,64,64]{3,2,1,0} all-reduce-start(%k), channel_id=1, replica_groups={}, to_apply=%add, metadata={op_name="jit(step)/transpose(jvp(Net))/conv/dot"}
  %all-reduce-done.1 = f32[3,3,64,64]{3,2,1,0} all-reduce-done(%all-reduce-start.1)
  %all-gather-start.1 = (f32[2,16]{1,0}, f32[4,16]{1,0}) all-gather-start(%z), channel_id=2, replica_groups={{0,1},{2,3}}, dimensions={0}, metadata={op_name="jit(step)/jvp(Net)/relu/max"}
  %collective-permute-start.4 = (f32[3,3,32,64]{3,2,1,0:T(8,128)}, f32[3,3,32,64]{3,2,1,0:T(8,128)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%b), channel_id=90, source_target_pairs={{0,3},{1,0},{2,1},{3,2}}, metadata={op_name="jit(step)/transpose(jvp(Net))/conv/conv_general_dilated"}
  %collective-permute.5 = f32[1,32,32,8]{3,2,1,0} collective-permute(%b), channel_id=91, source_target_pairs={{0,1},{2,3}}, metadata={op_name="jit(step)/transpose(jvp(Net))/conv/conv_general_dilated"}
}
"""  # noqa: E501


def test_the_text_of_a_tpu() -> None:
    found = read_collectives(TPU, 4)
    assert [(one.op, one.group, one.times, one.bytes) for one in found] == [
        ("reduce-scatter", 2, 1, 4 * 9 * 64 * 64),
        ("all-gather", 2, 1, 2 * 9 * 64 * 64),
        ("all-reduce", 2, 5, 64),
        ("all-reduce", 4, 1, 4 * 9 * 64 * 64),
        ("all-gather", 2, 1, 4 * 64),
        ("collective-permute", 4, 1, 4 * 9 * 32 * 64),
        ("collective-permute", 2, 1, 4 * 32 * 32 * 8),
    ]
    sorted_ = sort_by_purpose(found, parameters=[(3, 3, 64, 64), (8,)], norms=["bn1"], fsdp=2)
    assert {purpose: [found.index(one) for one in ones] for purpose, ones in sorted_.items() if ones} == {
        "gradients": [0, 3, 5],
        "parameters": [1],
        "BatchNorm": [2],
        "other": [4, 6],
    }


def test_gathered_detections_are_no_activations() -> None:
    rows, heatmap = (Collective("all-gather", (("f32", shape),), 8) for shape in ((8, 100, 4), (8, 128, 128, 80)))
    found = sort_by_purpose([rows, heatmap], parameters=[], norms=[], evaluation=True)
    assert found["detections"] == [rows] and found["other"] == [heatmap]


def test_the_roofline_is_arithmetic() -> None:
    topology = parse_topology("v5e:4x4")
    reduced = Collective("all-reduce", (("f32", (10**6,)),), 16, times=3)
    low = roofline(topology, flops=197e9, moved=819e6, collectives=[reduced])
    assert low.compute == pytest.approx(1e-3) and low.memory == pytest.approx(1e-3)
    assert low.interconnect == pytest.approx(3 * 2 * 15 / 16 * 4e6 / (4 * 50e9))
    assert low.seconds == max(low.compute, low.memory, low.interconnect)
    assert roofline(topology, 1e15, 1e9, []).bottleneck == "compute"
    assert roofline(topology, 1e9, 1e15, []).bottleneck == "memory"
    alone = roofline(parse_topology("v4:1x1x1"), 275e12, 0.0, [])
    assert (alone.seconds, alone.interconnect) == (pytest.approx(1.0), 0.0)


@pytest.mark.parametrize(
    "message, size",
    [
        (
            "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (74.00G) exceeds available HBM (15.75G). HLO module: jit_step.",
            74 * 2**30,
        ),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm.", 41 * 2**29),
        ("INTERNAL: something else (3.00G)", 0),
    ],
)
def test_a_refusal_says_how_much(message: str, size: int) -> None:
    assert memory_refused(message) == size


def test_the_line_through_two_batches() -> None:
    assert largest_fitting([(8, 1000), (16, 1800)], 2600) == 24
    assert largest_fitting([(16, 1800), (8, 1000)], 2599) == 23
    assert largest_fitting([(8, 1000), (16, 1800)], 100) == 0
    for points in ([(8, 1000), (8, 1000)], [(8, 1000), (16, 900)]):
        with pytest.raises(ValueError, match="does not grow"):
            largest_fitting(points, 5000)


def test_a_v5e_holds_less_than_its_16_gib() -> None:
    for name, gib in {"v4": 32, "v5e": 16, "v5p": 96, "v6e": 32}.items():
        assert 0.95 * gib <= CHIPS[name].memory / 2**30 < gib
    assert Memory(1, 2, 3, 4).total == 10
    assert np.isfinite([chip.flops / chip.bandwidth for chip in CHIPS.values()]).all()


def test_loops_are_told() -> None:
    """Whose bodies XLA's cost analysis counts once: the figures are then a lower bound."""

    def text(steps: int) -> str:
        def many(x: jax.Array) -> jax.Array:
            return jax.lax.scan(lambda c, k: (c @ k, None), x, jnp.ones((steps, 8, 8)))[0]

        return jax.jit(many).lower(jnp.ones((8, 8))).compile().as_text()

    assert counts_loops_once(text(16), 0)
    assert not counts_loops_once(text(16), 1)
    assert not counts_loops_once(text(1), 0)
