"""What an update is made of."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from kpjax.config import OptimConfig
from kpjax.optimizer import make_optimizer

PARAMS = {
    "neck": {"conv": {"kernel": np.ones(3, np.float32), "offset": {"kernel": np.ones(2, np.float32)}}},
    "heads": {"offset_out": {"kernel": np.ones(2, np.float32)}},  # the centre's offset, not a sample's
}


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_offsets_of_deformable_convolutions_can_learn_more_slowly(name: str) -> None:
    def update(**settings: Any) -> Any:
        optimizer = make_optimizer(OptimConfig(name=name, lr=0.1, **settings), steps=10)
        updates, _ = optimizer.update(jax.tree.map(np.ones_like, PARAMS), optimizer.init(PARAMS), PARAMS)
        return updates

    plain, slow = update(), update(offset_lr=0.25)
    np.testing.assert_allclose(slow["neck"]["conv"]["offset"]["kernel"], plain["neck"]["conv"]["offset"]["kernel"] / 4)
    for tree in (plain, slow):
        np.testing.assert_allclose(tree["neck"]["conv"]["kernel"], -0.1, rtol=1e-4)
        np.testing.assert_allclose(tree["heads"]["offset_out"]["kernel"], -0.1, rtol=1e-4)
