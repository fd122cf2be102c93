"""How arrays lie on the devices: one mesh of (data, fsdp), the batch over both axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from kpjax.errors import ConfigError
from kpjax.parallel import distributed

BATCH = PartitionSpec(("data", "fsdp"))


def make_mesh(fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices.  fsdp: how many share one copy of the parameters."""
    devices = list(jax.devices() if devices is None else devices)
    if len(devices) % fsdp:
        raise ConfigError(f"config.sharding.fsdp is {fsdp}, which does not divide the {len(devices)} devices")
    shape = (len(devices) // fsdp, fsdp)
    return jax.make_mesh(shape, ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto), devices=devices)


def connect_devices(mesh: Mesh) -> None:
    """The first collectives of a run: all processes, the devices of each axis and all devices exchange a number.

    On CPUs (Gloo) the members of a group wait 30 s for each other at their first collective, which a process that has
    more to compile than another misses; at later ones they wait as long as it takes.
    """
    if not distributed.connected():
        return
    distributed.gather(None)
    groups = (("data",), ("fsdp",), ("data", "fsdp"))
    one = jax.device_put(np.zeros((), np.float32), replicated(mesh))
    everywhere = PartitionSpec()

    def sums(x: jax.Array) -> list[jax.Array]:
        return [jax.lax.psum(x, group) for group in groups]

    exchange = jax.jit(jax.shard_map(sums, mesh=mesh, in_specs=everywhere, out_specs=everywhere))
    jax.block_until_ready(exchange(one))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis split over all devices."""
    return NamedSharding(mesh, BATCH)


def check_batch(batch: int, mesh: Mesh, key: str = "config.batch") -> None:
    """Raise ConfigError, with the two nearest that work, where the devices do not divide the batch."""
    count = mesh.size
    if batch % count:
        below, above = batch // count * count, -(-batch // count) * count
        near = f"{below} or {above}" if below else f"{above}"
        raise ConfigError(f"{key} is {batch}, which the {count} devices do not divide; use {near}")


def parameter_sharding(mesh: Mesh, tree: Any) -> Any:
    """Shardings for a state: with fsdp > 1 the largest dimension that it divides is split, else replicated.

    tree: arrays or ShapeDtypeStructs.  Small arrays (below 2**14 elements) stay whole: moving
    them costs more than they weigh.
    """
    fsdp = mesh.shape["fsdp"]

    def one(leaf: Any) -> NamedSharding:
        divisible = [axis for axis, size in enumerate(leaf.shape) if size % fsdp == 0]
        if fsdp == 1 or not divisible or leaf.size < 2**14:
            return replicated(mesh)
        axis = max(divisible, key=lambda a: leaf.shape[a])
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, "fsdp"))

    return jax.tree.map(one, tree)


def gathered(tree: Any, mesh: Mesh | None) -> Any:
    """Inside a program: parameters whole on every device, where fsdp splits them."""
    if mesh is None or mesh.shape["fsdp"] == 1:
        return tree
    return jax.lax.with_sharding_constraint(tree, replicated(mesh))


def split_over_fsdp(tree: Any, mesh: Mesh | None) -> Any:
    """Inside a program: gradients laid out as `parameter_sharding` lays out parameters, where fsdp splits them."""
    if mesh is None or mesh.shape["fsdp"] == 1:
        return tree
    return jax.lax.with_sharding_constraint(tree, parameter_sharding(mesh, tree))


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """Make global arrays of this process's slice of a batch, a tree of NumPy arrays."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
