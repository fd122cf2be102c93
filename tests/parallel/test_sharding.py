"""Where arrays lie."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from kpjax.errors import ConfigError
from kpjax.parallel.sharding import check_batch, make_mesh, parameter_sharding, put_batch


def test_a_mesh_over_all_devices() -> None:
    assert dict(make_mesh().shape) == {"data": 8, "fsdp": 1}
    assert dict(make_mesh(4).shape) == {"data": 2, "fsdp": 4}
    with pytest.raises(ConfigError, match=r"config\.sharding\.fsdp is 3, which does not divide the 8 devices"):
        make_mesh(3)


@pytest.mark.parametrize("batch, text", [(20, "use 16 or 24"), (7, "use 8"), (9, "use 8 or 16")])
def test_the_nearest_batches_are_named(batch: int, text: str) -> None:
    check_batch(16, make_mesh())
    with pytest.raises(ConfigError, match=f"is {batch}, .*{text}$"):
        check_batch(batch, make_mesh())


def test_a_batch_is_divided_over_both_axes() -> None:
    values = np.arange(48, dtype=np.float32).reshape(16, 3)
    placed = put_batch({"x": values}, make_mesh(2))["x"]
    np.testing.assert_array_equal(placed, values)
    assert [s.data.shape for s in placed.addressable_shards] == [(2, 3)] * 8


def test_large_parameters_are_divided_and_small_ones_are_not() -> None:
    shapes = {
        "large": jax.ShapeDtypeStruct((3, 3, 64, 128), np.float32),
        "odd": jax.ShapeDtypeStruct((3, 5, 7, 999), np.float32),
        "bias": jax.ShapeDtypeStruct((128,), np.float32),
        "step": jax.ShapeDtypeStruct((), np.int32),
    }
    specs = {k: s.spec for k, s in parameter_sharding(make_mesh(4), shapes).items()}
    assert specs["large"] == PartitionSpec(None, None, None, "fsdp")
    assert specs["odd"] == specs["bias"] == specs["step"] == PartitionSpec()
    assert {s.spec for s in parameter_sharding(make_mesh(1), shapes).values()} == {PartitionSpec()}
