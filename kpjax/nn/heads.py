"""A detector's heads: small convolutions that read one map."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from kpjax.nn.convolution import Precision
from kpjax.nn.layers import Conv, ConvParams, conv2d

Array = jax.Array


TOGETHER = 3  # heads whose first convolutions run as one: of more, what lies between outgrows a CPU's caches


@dataclasses.dataclass(frozen=True)
class Head:
    """One head of a network.

    channels: of its map.  bias, std: initial values of its last convolution: the bias, and the kernel's standard
        deviation.
    """

    channels: int
    bias: float = 0.0
    std: float = 0.001


def heatmap_head(channels: int) -> Head:
    """A head of heatmap logits, which start at -2.19: a score of 0.1 everywhere.

    Without it the first steps are lost to the background (CornerNet's supplement; Lin et al. 2017).
    """
    return Head(channels, bias=-2.19, std=0.01)


class Heads(nn.Module):
    """For each head a 3x3 convolution, ReLU and a 1x1 convolution.  (B, h, w, C) -> {name: (B, h, w, .) float32}.

    features: channels between the two.  kernel: side of the first convolutions, 3 or 1.  These read the same map, so
    they run as wider ones, of `TOGETHER` heads each, in `dtype` and `precision`; the last ones decide accuracy and are
    float32 whatever these are.
    """

    heads: dict[str, Head]
    features: int
    dtype: Any = jnp.float32
    precision: Precision = None
    kernel: int = 3

    @nn.compact
    def __call__(self, x: Array) -> dict[str, Array]:
        x, names = x.astype(self.dtype), list(self.heads)
        outputs: dict[str, Array] = {}
        for start in range(0, len(names), TOGETHER):
            outputs |= self._some(x, names[start : start + TOGETHER])
        return outputs

    def _some(self, x: Array, names: list[str]) -> dict[str, Array]:
        """The maps of some heads, whose first convolutions run as one."""
        size, pad = (self.kernel, self.kernel), (self.kernel // 2, self.kernel // 2)
        first = {name: ConvParams(self.features, size, name=f"{name}_conv")(x.shape[-1]) for name in names}
        kernel = jnp.concatenate([kernel for kernel, _ in first.values()], axis=-1).astype(self.dtype)
        bias = jnp.concatenate([bias for _, bias in first.values() if bias is not None]).astype(self.dtype)
        hidden = nn.relu(conv2d(x, kernel, 1, (pad, pad), self.precision) + bias)
        outputs = {}
        for i, name in enumerate(names):
            head = self.heads[name]
            out_kernel, out_bias = ConvParams(
                head.channels,
                kernel=(1, 1),
                kernel_init=nn.initializers.normal(head.std),
                bias_init=nn.initializers.constant(head.bias),
                name=f"{name}_out",
            )(self.features)
            assert out_bias is not None
            outputs[name] = _last(hidden[..., i * self.features : (i + 1) * self.features], out_kernel, out_bias)
        return outputs


def _last(x: Array, kernel: Array, bias: Array) -> Array:
    """A head's 1x1 convolution, in float32.  kernel: (1, 1, C, channels)."""
    product = jnp.einsum("bhwc,cd->bhwd", x.astype(jnp.float32), kernel[0, 0], precision=lax.Precision.HIGHEST)
    return product + bias


class DeepHead(nn.Module):
    """One head of several 3x3 convolutions with ReLU and a 1x1 convolution.  (B, h, w, C) -> (B, h, w, .) float32.

    head: its channels and initial values; `std` is that of all its kernels.  features, convs: channels and number of
    the 3x3 convolutions, which run in `dtype` and `precision`; the 1x1 one is float32 whatever these are.
    """

    head: Head
    features: int
    convs: int
    dtype: Any = jnp.float32
    precision: Precision = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = nn.initializers.normal(self.head.std)
        for i in range(self.convs):
            x = nn.relu(
                Conv(
                    self.features,
                    bias=True,
                    dtype=self.dtype,
                    precision=self.precision,
                    kernel_init=init,
                    name=f"conv{i}",
                )(x)
            )
        kernel, bias = ConvParams(
            self.head.channels,
            kernel=(1, 1),
            kernel_init=init,
            bias_init=nn.initializers.constant(self.head.bias),
            name="out",
        )(x.shape[-1])
        assert bias is not None
        return _last(x, kernel, bias)
