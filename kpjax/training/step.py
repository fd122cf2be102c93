"""One training step as one program: augment, encode, forward, backward, update.

`make_step` returns a pure function; `jit_step` compiles it for a mesh with the state
donated.  Nothing here reads the host.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kpjax.config import Config
from kpjax.data.augment import augment, augment_several, images_of
from kpjax.data.mosaic import with_next
from kpjax.detectors.base import Array, Detector, Targets
from kpjax.nn.cpu import separate_function_on_cpu
from kpjax.objects import Objects, object_shapes
from kpjax.parallel.compiling import compiler_options
from kpjax.parallel.sharding import BATCH, batch_sharding, gathered, parameter_sharding, replicated, split_over_fsdp
from kpjax.training.optimizer import average_decay, learning_rate, make_optimizer, scaled
from kpjax.training.trunk import check_stages, norms_at_rest, without_gradient

Batch = dict[str, Any]  # of arrays and of `Objects`
Metrics = dict[str, Array]
MOST_EXAMPLES = 2**31 - 1  # of a run: counters are int32


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes.

    step: int32, steps taken.  ema: moving average of params, or None.  first_bad_step: the
    step whose loss or gradient was not finite, -1 while there is none; from it on nothing
    else changes.
    """

    step: Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any
    first_bad_step: Array


def all_finite(tree: Any) -> Array:
    """Whether no array of the tree contains an infinity or a NaN: () bool."""
    # Arrays of one shape are joined cell by cell, which makes few reductions of many.
    by_shape: dict[tuple[int, ...], Array] = {}
    for x in jax.tree.leaves(tree):
        by_shape[x.shape] = by_shape.get(x.shape, True) & jnp.isfinite(x)
    return jnp.stack([finite.all() for finite in by_shape.values()]).all()


def where_tree(ok: Array, new: Any, old: Any) -> Any:
    """The new tree where `ok` (() bool), else the old one: `jnp.where` of each pair of leaves."""
    return jax.tree.map(lambda n, o: jnp.where(ok, n, o), new, old)


def init_state(detector: Detector, config: Config, steps: int, key: Array) -> TrainState:
    """A fresh state, float32.  Pure: may run under jit with sharded outputs, or under eval_shape."""
    images = jnp.zeros((1, config.augment.height, config.augment.width, 3), jnp.float32)
    # bn_groups divides the training batch, not this one image; shapes do not depend on it.
    return state_of(detector.net.init(key, images, train=False), config, steps)


def state_of(variables: Any, config: Config, steps: int) -> TrainState:
    """The state that starts from a network's variables {"params", "batch_stats"}.  Pure.

    Raises ConfigError where the network has not the stages that `config.model.freeze_stages` freezes.
    """
    params = variables["params"]
    check_stages(params, config)
    return TrainState(
        step=jnp.int32(0),
        params=params,
        batch_stats=variables["batch_stats"],
        opt_state=make_optimizer(scaled(config), steps, config.model.freeze_stages).init(params),
        # A copy: the step gives away its state's memory, each array once.
        ema=jax.tree.map(jnp.copy, params) if config.optim.ema else None,
        first_bad_step=jnp.int32(-1),
    )


def batch_shapes(config: Config, detector: Detector) -> dict[str, Any]:
    """What the step takes beside its state: shapes and dtypes of a global batch."""
    n, side = config.batch, config.data.canvas
    return {
        "canvas": jax.ShapeDtypeStruct((n, side, side, 3), np.uint8),
        "size": jax.ShapeDtypeStruct((n, 2), np.int32),
        "objects": object_shapes((n, config.data.max_boxes), detector.points, detector.solid),
        "counter": jax.ShapeDtypeStruct((n,), np.int32),
    }


def prepare(detector: Detector, config: Config, batch: Batch, steps: int = 0) -> tuple[Array, Targets]:
    """A raw batch -> the network's input (B, H, W, 3) float32 and its targets.

    steps: of the whole run, after a part of which images are no longer combined; 0: they are at any step.
    """
    augment_config = config.augment
    shared = (augment_config, detector.preprocess, detector.points, detector.inclusive)
    images, count = (batch["canvas"], batch["size"], batch["objects"]), images_of(augment_config)

    def one(counter: Array, canvas: Array, extent: Array, objects: Objects) -> Any:
        key = jax.random.fold_in(jax.random.key(config.seed), counter)
        if count > 1:
            image, objects, placed = augment_several(key, canvas, extent, objects, counter < last, *shared)
        else:
            image, objects, placed = augment(key, canvas, extent, objects, *shared)
        return image, detector.encode(objects, placed)

    with jax.named_scope("augment"):
        if count > 1:
            images = with_next(images, count)
        # A step's examples are numbered from its own number times the batch.
        last = round(augment_config.mosaic_until * steps) * config.batch if steps else MOST_EXAMPLES
        last = min(last, MOST_EXAMPLES)
        return jax.vmap(one)(batch["counter"], *images)


def make_step(
    detector: Detector, config: Config, steps: int, mesh: Mesh | None = None
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The step as a pure function (state, batch) -> (state, metrics).

    mesh: the mesh that `jit_step` gets.  Without it, accumulation and fsdp are laid out as the compiler likes.
    metrics: float32 scalars "loss", the loss's parts, "grad_norm", "lr"; "ok" bool.
    """
    optimizer = make_optimizer(scaled(config), steps, config.model.freeze_stages)
    rate = learning_rate(scaled(config), steps)
    micro_batches = config.optim.accumulate

    def loss_of(params: Any, stats: Any, images: Array, targets: Targets, counts: dict[str, Array]) -> Any:
        params = without_gradient(params, config.model.freeze_stages)
        with norms_at_rest(config):
            outputs, changed = detector.net.apply(
                {"params": params, "batch_stats": stats}, images, train=True, mutable=["batch_stats"]
            )
        loss, parts = detector.loss(outputs, targets, counts)
        return loss, (changed["batch_stats"], parts)

    value_and_grad = jax.value_and_grad(loss_of, has_aux=True)

    def gradients(params: Any, stats: Any, batch: Batch, counts: dict[str, Array] | None = None) -> Any:
        images, targets = prepare(detector, config, batch, steps)
        counts = detector.normaliser(targets) if counts is None else counts
        results, grads = value_and_grad(params, stats, images, targets, counts)
        return results, split_over_fsdp(grads, mesh)

    def accumulated(params: Any, stats: Any, batch: Batch) -> Any:
        split = jax.tree.map(lambda x: x.reshape(micro_batches, -1, *x.shape[1:]), batch)
        if mesh is not None:
            # The whole batch lies device after device; without this each micro-batch would lie on a few of them.
            over_images = NamedSharding(mesh, PartitionSpec(None, *BATCH))
            split = jax.lax.with_sharding_constraint(split, over_images)
        # Losses divide by the whole batch's objects, so those are counted first; the images of
        # this pass are never computed.
        each = jax.lax.map(lambda micro: detector.normaliser(prepare(detector, config, micro, steps)[1]), split)
        counts = jax.tree.map(lambda x: x.sum(0), each)

        def add(total: Any, micro: Batch) -> Any:
            return jax.tree.map(jnp.add, total, gradients(params, stats, micro, counts)), None

        shapes = jax.eval_shape(lambda b: gradients(params, stats, jax.tree.map(lambda x: x[0], b), counts), split)
        start = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        ((loss, (moved, parts)), grads), _ = jax.lax.scan(add, start, split)
        # Every micro-batch moved the same old statistics; their mean is one move by the groups' mean.
        return (loss, (jax.tree.map(lambda s: s / micro_batches, moved), parts)), grads

    def moved_if(ok: Array, params: Any, updates: Any) -> Any:
        return where_tree(ok, optax.apply_updates(params, updates), params)

    def averaged_if(ok: Array, ema: Any, params: Any, update: Array) -> Any:
        decay = average_decay(config.optim, update)
        return where_tree(ok, jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, ema, params), ema)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        # Where devices share the parameters, each first gathers them whole.  Left to itself the compiler computes some
        # layers with a part of them, and sends activations, which are larger.
        whole = gathered(state.params, mesh)
        passes = accumulated if micro_batches > 1 else gradients
        (loss, (stats, parts)), grads = passes(whole, state.batch_stats, batch)
        norm = optax.tree.norm(grads)
        updates, opt_state = separate_function_on_cpu(optimizer.update)(grads, state.opt_state, state.params)
        # Finite gradients can still overflow in the update, and activations in the statistics.
        ok = separate_function_on_cpu(all_finite)((loss, norm, updates, stats)) & (state.first_bad_step < 0)
        params = separate_function_on_cpu(moved_if)(ok, state.params, updates)
        stats = separate_function_on_cpu(where_tree)(ok, stats, state.batch_stats)
        opt_state = separate_function_on_cpu(where_tree)(ok, opt_state, state.opt_state)
        ema = None
        if config.optim.ema:
            ema = separate_function_on_cpu(averaged_if)(ok, state.ema, params, state.step + 1)
        first_bad = jnp.where(ok | (state.first_bad_step >= 0), state.first_bad_step, state.step)
        metrics = {"loss": loss, **parts, "grad_norm": norm, "lr": jnp.float32(rate(state.step)), "ok": ok}
        return TrainState(state.step + 1, params, stats, opt_state, ema, first_bad), metrics

    return step


def state_shardings(mesh: Mesh, state: Any) -> Any:
    """Where each leaf of a TrainState (or of its shapes) lives."""
    return parameter_sharding(mesh, state)


def jit_step(step: Callable[..., Any], mesh: Mesh, state_shapes: Any) -> Any:
    """`step` jitted for a mesh: the state donated and laid out as `state_shardings` says, metrics on every device."""
    shardings = state_shardings(mesh, state_shapes)
    return jax.jit(
        step,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
        compiler_options=compiler_options(mesh),
    )
