"""What kpjax uses of JAX without a public name is where it was."""

from __future__ import annotations

import pathlib
import re

import jax
import pytest

from kpjax.parallel import jax_internals

ROOT = pathlib.Path(__file__).parents[2]


def missing(what: str, error: Exception) -> None:
    pytest.fail(
        f"JAX {jax.__version__} has no {what} any more ({type(error).__name__}: {error}); "
        "find its new place and mend kpjax/parallel/jax_internals.py"
    )


def test_the_client_of_the_coordination_service() -> None:
    try:
        assert jax_internals.coordination_client() is None  # a single process
        from jax._src.lib import _jax

        client = _jax.DistributedRuntimeClient
        for method in ("key_value_set", "key_value_dir_get", "blocking_key_value_get", "wait_at_barrier"):
            getattr(client, method)
    except (ImportError, AttributeError) as error:
        missing("jax._src.distributed.global_state.client, or one of its methods", error)


def test_the_environments_of_launchers() -> None:
    try:
        assert [kind.name for kind in jax_internals.cluster_environments(tpu=False)] == ["ompi", "slurm"]
        for kind in jax_internals.cluster_environments(tpu=True):
            for method in ("is_env_present", "get_coordinator_address", "get_process_count", "get_process_id"):
                getattr(kind, method)
            kind.get_local_process_id  # noqa: B018
    except (ImportError, AttributeError) as error:
        missing("jax._src.clusters with classes for Open MPI, Slurm and TPU pods", error)


def test_whether_the_devices_have_started() -> None:
    try:
        jax.devices()
        assert jax_internals.devices_started()
    except (ImportError, AttributeError) as error:
        missing("jax._src.xla_bridge.backends_are_initialized", error)


def test_nothing_else_uses_private_parts_of_jax() -> None:
    files = [*ROOT.glob("*.py"), *(ROOT / "kpjax").rglob("*.py")]
    assert len(files) > 50
    private = re.compile(r"\bjax\._src|\bjaxlib\._(?!_)|global_state")
    assert [str(f.relative_to(ROOT)) for f in files if private.search(f.read_text())] == [
        "kpjax/parallel/jax_internals.py"
    ]
