"""Where a process finds the others.  What they do then is tested with real ones in tests/distributed."""

from __future__ import annotations

import os

import jax
import pytest

from kpjax.errors import ConfigError
from kpjax.parallel import distributed
from kpjax.parallel.cluster import Cluster, find
from kpjax.parallel.distributed import of_peers

LAUNCHERS = (
    "RANK",
    "WORLD_SIZE",
    "MASTER_",
    "LOCAL_",
    "TORCHELASTIC_",
    "SLURM_",
    "OMPI_",
    "TPU_",
    "MEGASCALE_",
    "JAX_",
)


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith((*LAUNCHERS, "CUDA_VISIBLE"))]:
        monkeypatch.delenv(name)


def put(monkeypatch: pytest.MonkeyPatch, **variables: object) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))


def test_one_process_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find() is None
    assert find("10.0.0.1:1234", 1, 0) is None
    put(monkeypatch, RANK=0, WORLD_SIZE=1, MASTER_ADDR="a", MASTER_PORT=1)
    assert find() is None
    assert not distributed.active() and distributed.first()
    distributed.agree({"a": 1})
    distributed.finish()
    assert distributed.gather([3]) == [[3]]


def test_flags_go_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, RANK=0, WORLD_SIZE=8, MASTER_ADDR="a", MASTER_PORT=1)
    assert find("10.0.0.1:1234", 4, 3) == Cluster("10.0.0.1:1234", 4, 3, None, "the flags")
    assert find("[::1]:80", 2, 0) == Cluster("[::1]:80", 2, 0, None, "the flags")


@pytest.mark.parametrize(
    "given, text",
    [
        (("a:1", None, None), "--coordinator is given without --num-processes and --process-id"),
        ((None, 4, 1), "--num-processes is given without --coordinator"),
        (("a:1", 4, 4), "process 4 of 4 does not exist"),
        (("a:1", 4, -1), "process -1 of 4 does not exist"),
        (("a:1", 0, 0), "process 0 of 0 does not exist"),
        (("a", 4, 1), "give HOST:PORT"),
        (("a:x", 4, 1), "give HOST:PORT"),
        (("a:70000", 4, 1), "give HOST:PORT"),
    ],
)
def test_flags_that_do_not_fit_together(given: tuple, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find(*given)
    assert text in str(caught.value) and "\n" not in str(caught.value)


def test_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, RANK=5, WORLD_SIZE=8, MASTER_ADDR="node0", MASTER_PORT=29500)
    found = find()
    assert found is not None and (found.coordinator, found.processes, found.process) == ("node0:29500", 8, 5)
    assert found.local_devices is None
    put(monkeypatch, LOCAL_RANK=1, LOCAL_WORLD_SIZE=4, TORCHELASTIC_RUN_ID="x")
    found = find()
    # torchrun itself listens on MASTER_PORT; and each of four processes on a host takes one GPU.
    assert found is not None and (found.coordinator, found.local_devices) == ("node0:29501", (1,))
    put(monkeypatch, JAX_COORDINATOR_PORT=4000, CUDA_VISIBLE_DEVICES="6")  # bound to one GPU by the launcher
    found = find()
    assert found is not None and (found.coordinator, found.local_devices) == ("node0:4000", None)


@pytest.mark.parametrize(
    "variables, text",
    [
        ({"RANK": 8}, "process 8 of 8 does not exist (torchrun's variables)"),
        ({"RANK": "first"}, "RANK is 'first'; it must be a whole number"),
        ({"MASTER_ADDR": ""}, "WORLD_SIZE is 8, but MASTER_ADDR is not set"),
        ({"MASTER_PORT": "p"}, "give HOST:PORT"),
    ],
)
def test_torchrun_gone_wrong(monkeypatch: pytest.MonkeyPatch, variables: dict, text: str) -> None:
    put(monkeypatch, **({"RANK": 1, "WORLD_SIZE": 8, "MASTER_ADDR": "a", "MASTER_PORT": 5} | variables))
    with pytest.raises(ConfigError) as caught:
        find()
    assert text in str(caught.value)


SLURM = {
    "SLURM_JOB_ID": 4096 + 7,
    "SLURM_STEP_NODELIST": "node[003-004,009]",
    "SLURM_NTASKS": 3,
    "SLURM_STEP_NUM_TASKS": 3,
    "SLURM_STEP_TASKS_PER_NODE": "1(x3)",
    "SLURM_PROCID": 2,
    "SLURM_NODEID": 2,
    "SLURM_LOCALID": 0,
}


def test_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, **SLURM)
    found = find()
    assert found is not None
    assert (found.coordinator, found.processes, found.process) == (f"node003:{65535 - 4095 + 7}", 3, 2)
    assert found.local_devices is None  # alone on its host: all GPUs, where JAX's own start would take the first
    put(monkeypatch, SLURM_STEP_TASKS_PER_NODE="8(x2),4", SLURM_LOCALID=3)
    found = find()
    assert found is not None and found.local_devices == (3,)
    put(monkeypatch, SLURM_STEP_NUM_TASKS=1)  # a shell within an allocation of three tasks
    assert find() is None


def test_slurm_gone_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, **(SLURM | {"SLURM_PROCID": "x"}))
    with pytest.raises(ConfigError, match="this is a process of slurm, but its place cannot be read"):
        find()


def test_a_tpu_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    from jax._src.clusters import cloud_tpu_cluster

    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    put(monkeypatch, TPU_WORKER_HOSTNAMES="localhost,other", TPU_WORKER_ID=1)
    put(monkeypatch, MEGASCALE_COORDINATOR_ADDRESS="localhost", MEGASCALE_NUM_SLICES=1, MEGASCALE_SLICE_ID=0)
    found = find()
    assert found is not None and (found.coordinator, found.processes, found.process) == ("localhost:8482", 2, 1)
    assert found.local_devices is None
    put(monkeypatch, JAX_PLATFORMS="cpu")
    assert find() is None
    put(monkeypatch, JAX_PLATFORMS="tpu,cpu", TPU_WORKER_HOSTNAMES="localhost", TPU_WORKER_ID=0)
    assert find() is None  # one host


def test_what_another_process_is_to_blame_for() -> None:
    lost = jax.errors.JaxRuntimeError("UNAVAILABLE: failed to connect to all addresses")
    wrapped = TimeoutError("Timed out while waiting for a barrier.")
    wrapped.__cause__ = lost
    for error in (lost, wrapped, ValueError("UNKNOWN: Gloo AllGather failed: Connection closed by peer [127.0.0.1]:1")):
        assert of_peers(error)
    for error in (ValueError("UNAVAILABLE: 503"), jax.errors.JaxRuntimeError("INTERNAL: a bug"), KeyError("x")):
        assert not of_peers(error)
