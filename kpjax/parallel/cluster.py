"""Which processes belong to a run, and which of them this one is: flags, torchrun, Open MPI, Slurm, TPU pods."""

from __future__ import annotations

import dataclasses
import os

from kpjax.errors import ConfigError, one_line
from kpjax.parallel.jax_internals import cluster_environments


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Where this process stands among all of them.

    coordinator: host:port on which process 0 listens.  local_devices: the GPUs of this host that are this process's
    (None: all).  found_by: for messages.
    """

    coordinator: str
    processes: int
    process: int
    local_devices: tuple[int, ...] | None = None
    found_by: str = ""


def find(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> Cluster | None:
    """The cluster that the flags name, else the environment: torchrun's variables, Open MPI, Slurm, a TPU pod.

    Returns None for a single process.  Raises ConfigError, one line, where what is given does not fit together.
    """
    flags = {"--coordinator": coordinator, "--num-processes": processes, "--process-id": process}
    missing = [name for name, value in flags.items() if value is None]
    if not missing:
        assert coordinator is not None and processes is not None and process is not None
        return _checked(Cluster(coordinator, processes, process, None, "the flags"))
    if len(missing) < 3:
        given = next(name for name in flags if name not in missing)
        raise ConfigError(f"{given} is given without {' and '.join(missing)}; give all three, or none of them")
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in names if not os.environ.get(name)]
    if not missing:
        return _of_torchrun()
    found = _of_jax()
    if found is None and not {"RANK", "WORLD_SIZE"} & set(missing) and _number("WORLD_SIZE") > 1:
        raise ConfigError(
            f"WORLD_SIZE is {_number('WORLD_SIZE')}, but {' and '.join(missing)} is not set; set all four"
        )
    return found


def _number(name: str) -> int:
    try:
        return int(os.environ[name])
    except ValueError as error:
        raise ConfigError(f"the environment's {name} is {os.environ[name]!r}; it must be a whole number") from error


def _checked(cluster: Cluster) -> Cluster | None:
    host, _, port = cluster.coordinator.rpartition(":")
    by = cluster.found_by
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"the coordinator is {cluster.coordinator!r} by {by}; give HOST:PORT of process 0")
    if cluster.processes < 1 or not 0 <= cluster.process < cluster.processes:
        raise ConfigError(
            f"process {cluster.process} of {cluster.processes} does not exist ({by}); "
            "they are numbered from 0, and there is at least one"
        )
    return cluster if cluster.processes > 1 else None


def _of_torchrun() -> Cluster | None:
    port = os.environ["MASTER_PORT"]
    if os.environ.get("JAX_COORDINATOR_PORT"):
        port = os.environ["JAX_COORDINATOR_PORT"]
    elif "TORCHELASTIC_RUN_ID" in os.environ:
        port = str(_number("MASTER_PORT") + 1)  # torchrun itself may listen on MASTER_PORT
    count, local = _number("WORLD_SIZE"), None
    if "LOCAL_RANK" in os.environ:
        local = gpus_of_process(
            _number("LOCAL_RANK"), _number("LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in os.environ else count
        )
    address = f"{os.environ['MASTER_ADDR']}:{port}"
    return _checked(Cluster(address, count, _number("RANK"), local, "torchrun's variables"))


def _of_jax() -> Cluster | None:
    """What JAX's own detection says."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    kinds = cluster_environments(tpu=not platforms or "tpu" in platforms)
    found = next((kind for kind in kinds if kind.is_env_present()), None)
    if found is None or (found.name == "slurm" and os.environ.get("SLURM_STEP_NUM_TASKS") == "1"):
        return None  # a shell within an allocation has SLURM_NTASKS of the allocation
    try:
        if found.get_process_count() == 1:
            return None
        address = os.environ.get("JAX_COORDINATOR_ADDRESS") or found.get_coordinator_address(
            timeout_secs=START_SECONDS, override_coordinator_port=os.environ.get("JAX_COORDINATOR_PORT")
        )
        local = found.get_local_process_id()
        here = _processes_here(found.name)
        cluster = Cluster(
            address,
            found.get_process_count(),
            found.get_process_id(),
            None if local is None or here is None else gpus_of_process(local, here),
            f"the environment of {found.name}",
        )
    except (KeyError, ValueError, RuntimeError, OSError) as error:
        raise ConfigError(
            f"this is a process of {found.name}, but its place cannot be read ({type(error).__name__}: "
            f"{one_line(error)}); give --coordinator, --num-processes and --process-id"
        ) from error
    return _checked(cluster)


def _processes_here(kind: str) -> int | None:
    """How many of the cluster's processes run on this host; None where that does not matter (TPUs)."""
    if kind == "ompi":
        return int(os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", "1"))
    if kind != "slurm":
        return None
    # "2(x3),1": two tasks on each of three nodes, one on the fourth
    counts: list[int] = []
    for part in os.environ.get("SLURM_STEP_TASKS_PER_NODE", "1").split(","):
        tasks, _, times = part.partition("(x")
        counts += [int(tasks)] * int(times.rstrip(")") or 1)
    return counts[min(int(os.environ.get("SLURM_NODEID", "0")), len(counts) - 1)]


def gpus_of_process(local: int, here: int) -> tuple[int, ...] | None:
    """The GPU of process `local` of `here` on a host; None (all it sees) where it is alone or the launcher chose."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    assigned = visible is not None and len(visible.split(",")) < here
    return None if here == 1 or assigned else (local,)


START_SECONDS = 300  # within which all processes have to be there
