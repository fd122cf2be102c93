"""What kpjax uses of JAX that has no public name: all of it is here.

Each function has a test in tests/parallel/test_jax_internals.py that says what is missing where a release of JAX
has moved it.
"""

from __future__ import annotations

from typing import Any


def coordination_client() -> Any:
    """JAX's client of its coordination service (a key-value store and barriers), None with a single process."""
    from jax._src import distributed

    return distributed.global_state.client


def cluster_environments(tpu: bool) -> list[Any]:
    """JAX's classes that read a process's place from the environment: Open MPI, Slurm and, if asked for, TPU pods.

    `jax.distributed.initialize` uses them, but starts a service for a lone process too, and gives a process of
    Slurm one GPU also where it is alone on its host.
    """
    from jax._src import clusters

    kinds: list[Any] = [clusters.OmpiCluster, clusters.SlurmCluster]
    return [*kinds, clusters.GkeTpuCluster, clusters.GceTpuCluster] if tpu else kinds


def devices_started() -> bool:
    """Whether JAX has looked for its devices: from then on it reads neither XLA_FLAGS nor JAX_PLATFORMS."""
    from jax._src import xla_bridge

    return xla_bridge.backends_are_initialized()
