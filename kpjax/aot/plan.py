"""A step compiled ahead of time for a TPU slice or GPUs: its memory, its work, and the largest batch that they hold."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import jax

from kpjax.aot.cuda_hlo import Oddity, read_gpu_work
from kpjax.aot.gpu import assembler_missing
from kpjax.aot.hlo import Collective, counts_loops_once, memory_refused, read_collectives, sort_by_purpose
from kpjax.aot.roofline import Roofline, largest_fitting, roofline
from kpjax.aot.topology import Topology
from kpjax.config import Config
from kpjax.detectors import from_config
from kpjax.detectors.base import Detector
from kpjax.images.views import make_view
from kpjax.inference.program import make_infer, protocol_of
from kpjax.parallel.compiling import Memory, memory_of
from kpjax.parallel.sharding import batch_sharding, check_batch, make_mesh, replicated
from kpjax.training.step import batch_shapes, init_state, jit_step, make_step

_STEPS = 1000  # length of the run: sets the schedule's constants, which no figure here depends on
_LONGEST = (640, 640)  # pixels of COCO's largest images
_TRIES = 6  # compilations that `largest_batch` may use, the first included


@dataclasses.dataclass(frozen=True)
class Work:
    """What one chip does in a step: arithmetic, bytes from and to its memory, and collectives by purpose.

    float32: the part of `flops` in float32 products, told apart on GPUs alone.
    at_least: the figures are lower bounds: XLA counts bodies of loops (of deformable convolution, of decoders) once;
    on a GPU that is so for loops of unknown length alone.
    launches, in_loops: on a GPU, kernels and calls of libraries, all and those in loops.  odd: what looks wrong there.
    """

    flops: float
    moved: float
    collectives: dict[str, list[Collective]]
    at_least: bool = False
    float32: float = 0.0
    launches: int = 0
    in_loops: int = 0
    odd: tuple[Oddity, ...] = ()

    def roofline(self, topology: Topology) -> Roofline:
        """Its time on `topology` at the published peaks."""
        collectives = [one for kind in self.collectives.values() for one in kind]
        return roofline(topology, self.flops, self.moved, collectives, self.float32)


@dataclasses.dataclass(frozen=True)
class Plan:
    """One program on one slice, or on some GPUs.

    batch: images a step over all chips.  canvas: the input's height and width.  seconds: compile time.
    work: None where the compiler refused the program because it needs more memory than a chip has; `memory` is then
    from its message.  text: the optimised HLO.
    """

    topology: Topology
    config: Config
    detector: Detector
    evaluation: bool
    canvas: tuple[int, int]
    batch: int
    memory: Memory
    seconds: float
    work: Work | None = None
    text: str = ""

    @property
    def fits(self) -> bool:
        """Whether a chip's memory holds it."""
        return self.work is not None and self.memory.total <= self.topology.chip.memory


def make_plan(topology: Topology, config: Config, evaluation: bool, canvas: tuple[int, int], classes: int) -> Plan:
    """Compile the step of `config` for `topology`."""
    mesh = make_mesh(config.sharding.fsdp, topology.devices())
    detector = from_config(config, config.model.num_classes or classes)
    accumulate = 1 if evaluation else config.optim.accumulate
    batch = config.eval.batch if evaluation else config.batch
    if not evaluation:
        check_batch(batch // accumulate, mesh, "config.batch / config.optim.accumulate")
        state = jax.eval_shape(lambda key: init_state(detector, config, _STEPS, key), jax.random.key(0))
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        step = jit_step(make_step(detector, config, _STEPS, mesh), mesh, state)
        inputs: tuple[Any, ...] = (state, batch_shapes(config, detector))
    else:
        check_batch(batch, mesh, "config.eval.batch")
        inputs = test_shapes(detector, mesh, batch, canvas)
        variables = inputs[0]
        step = make_infer(detector, mesh, preset=config.eval.preset, top_k=config.eval.top_k)
    options = dict(topology.options)
    if config.deterministic and topology.platform == "cuda":  # as `make_deterministic` asks of it
        options["xla_gpu_deterministic_ops"] = True
    what = "test" if evaluation else "training"
    print(f"compiling the {what} step of batch {batch} for {topology.name}: seconds to many minutes", flush=True)
    started = time.perf_counter()
    plan = Plan(topology, config, detector, evaluation, canvas, batch, Memory(0, 0), 0.0)
    try:
        compiled = step.lower(*inputs).compile(compiler_options=options or None)
    except jax.errors.JaxRuntimeError as error:
        if missing := assembler_missing(str(error)):
            raise missing from error
        needed = memory_refused(str(error))
        if not needed:
            raise
        return dataclasses.replace(plan, memory=Memory(0, needed), seconds=time.perf_counter() - started)
    seconds = time.perf_counter() - started
    text = compiled.as_text()
    collectives = sort_by_purpose(
        read_collectives(text, topology.size),
        parameters=[leaf.shape for leaf in jax.tree.leaves(variables["params"])],
        norms=sorted({path[-2].key for path, _ in jax.tree_util.tree_leaves_with_path(variables["batch_stats"])}),
        fsdp=config.sharding.fsdp,
        evaluation=evaluation,
    )
    if topology.platform == "cuda":
        work = Work(collectives=collectives, **vars(read_gpu_work(text)))
    else:
        cost = compiled.cost_analysis() or {}
        work = Work(
            # The compiler counts the body of a loop over micro-batches once; nearly all of a step is in there.
            flops=accumulate * cost.get("flops", 0.0),
            moved=accumulate * cost.get("bytes accessed", 0.0),
            collectives=collectives,
            at_least=counts_loops_once(text, int(accumulate > 1)),
        )
    return dataclasses.replace(plan, memory=memory_of(compiled), seconds=seconds, work=work, text=text)


def test_shapes(detector: Detector, mesh: Any, batch: int, canvas: tuple[int, int]) -> tuple[Any, ...]:
    """Shapes of what the test-time program takes, laid out as `evaluate` does: weights everywhere, images divided."""
    images = jax.ShapeDtypeStruct((1, *canvas, 3), "float32")
    variables = jax.eval_shape(lambda x: detector.net.init(jax.random.key(0), x, train=False), images)
    everywhere, divided = replicated(mesh), batch_sharding(mesh)

    def rows(dtype: str, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch, *shape), dtype, sharding=divided)

    cameras = {"camera": rows("float32", 3, 4), "zoom": rows("float32", 2), "shift": rows("float32", 2)}
    return (
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), variables),
        *(rows("uint8", *canvas, 3), rows("int32", 4), rows("int32", 2)),
        *([cameras] if detector.solid else []),
    )


def canvas_of(detector: Detector, config: Config) -> tuple[int, int]:
    """The largest input of the test-time program on COCO: that of a 640x640 image at the preset's largest scale."""
    view = make_view(
        detector.preprocess,
        _LONGEST,
        resolution=config.eval.resolution,
        fixed=(config.augment.height, config.augment.width),
        max_side=config.eval.max_side,
        scale=max(protocol_of(detector, config.eval.preset).scales),
    )
    return view.canvas


def with_batch(config: Config, batch: int, evaluation: bool) -> Config:
    """`config` with another batch, checked."""
    if evaluation:
        return dataclasses.replace(config, eval=dataclasses.replace(config.eval, batch=batch)).check()
    return dataclasses.replace(config, batch=batch).check()


def smallest_step(chips: int, config: Config, evaluation: bool) -> int:
    """Batches are multiples of this: of the chips and of BatchNorm's groups, in each micro-batch."""
    if evaluation:
        return chips
    return math.lcm(chips, config.model.bn_groups) * config.optim.accumulate


def largest_batch(measure: Callable[[int], int], unit: int, batch: int, size: int, available: int) -> int:
    """The largest multiple of `unit` whose memory is at most `available`; 0: none.

    measure: batch -> bytes, by compiling.  batch, size: a first measurement, of a multiple of `unit`.  Memory grows
    almost linearly with the batch: two measurements predict the largest one, and the others verify it.  The batch
    returned was compiled.  The next larger one did not fit when compiled, or would not by the line through the
    nearest two measurements.
    """
    points = {batch: size}

    def fits(count: int) -> bool:
        if count * unit not in points:
            points[count * unit] = measure(count * unit)
        return points[count * unit] <= available

    start = max(batch // unit, 1)
    fits(max(start // 2, 1) if size > available and start > 1 else 2 * start)
    below, above = 0, math.inf  # of units: known to fit, known not to
    while len(points) < _TRIES:
        below = max((b // unit for b, m in points.items() if m <= available), default=0)
        above = min((b // unit for b, m in points.items() if m > available), default=math.inf)
        if above - below <= 1:
            break
        # The line through the two measurements nearest to the limit.
        nearest = sorted(points, key=lambda b: abs(points[b] - available))[:2]
        try:
            guess = largest_fitting([(b, points[b]) for b in nearest], available) // unit
        except ValueError:
            guess = 2 * below
        if guess == below and below:
            break
        fits(int(min(max(guess, below + 1), above - 1)))
    return max((b for b, m in points.items() if m <= available), default=0)
