"""What every golden test shares: the case itself, and full float32 products on accelerators."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import pytest

from .cases import load_case


@pytest.fixture
def case(request: pytest.FixtureRequest) -> Any:
    """The case whose name `each_case` gave."""
    return load_case(request.param)


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    """GPUs and TPUs multiply float32 matrices in fewer bits unless told otherwise."""
    with jax.default_matmul_precision("highest"):
        yield
