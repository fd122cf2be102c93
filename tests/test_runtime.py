"""What is settled before JAX starts."""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Iterator

import jax
import pytest

from kpjax import runtime
from kpjax.config import ConfigError
from tests.tiny import tiny_config


def chosen_folder() -> str | None:
    return jax.config.values["jax_compilation_cache_dir"]


@pytest.fixture
def cache_folder() -> Iterator[None]:
    before = chosen_folder()
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_unlike_processors_do_not_share_compiled_programs(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, cache_folder: None
) -> None:
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    runtime.keep_compiled()
    chosen = chosen_folder()
    assert chosen is not None and re.fullmatch(r"compiled-[0-9a-f]{8}", os.path.basename(chosen))
    assert os.path.isdir(chosen) and os.path.dirname(chosen) == str(tmp_path / "kpjax")
    runtime.keep_compiled()
    assert chosen_folder() == chosen
    monkeypatch.setattr("platform.machine", lambda: "another")
    runtime.keep_compiled()
    assert chosen_folder() != chosen


def test_deterministic_runs_ask_xla_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(steps=1)
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x")
    runtime.make_deterministic(config)
    assert os.environ["XLA_FLAGS"] == "--xla_dump_to=x"
    config.deterministic = True
    for _ in range(2):
        runtime.make_deterministic(config)
        assert os.environ["XLA_FLAGS"] == "--xla_dump_to=x --xla_gpu_deterministic_ops=true"
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_deterministic_ops=false")
    with pytest.raises(ConfigError, match="XLA_FLAGS"):
        runtime.make_deterministic(config)
