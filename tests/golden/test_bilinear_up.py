"""The depthwise up-sampling of DLA's neck as it starts: Caffe's bilinear filler (1e-6)."""

from __future__ import annotations

import re
from typing import Any

import jax
import numpy as np

from kpjax.nn.layers import UpsampleDepthwise, bilinear_window

from .cases import each_case, fill, nhwc


@each_case("fn_ctnet_bilinear_up")
def test_bilinear_up(case: Any) -> None:
    assert case.info["facts"]
    for name, facts in case.info["facts"].items():
        factor = int(re.fullmatch(r"f(\d+)", name)[1])  # type: ignore[index]
        np.testing.assert_allclose(bilinear_window(factor), case[f"kernel_{name}"], atol=1e-6, rtol=0)
        x = nhwc(fill(facts["input_tag"], facts["shape"]))
        y, _ = jax.jit(UpsampleDepthwise(factor).init_with_output)(jax.random.key(0), x)
        np.testing.assert_allclose(y, nhwc(case[f"out_{name}"]), atol=1e-6, rtol=0)
