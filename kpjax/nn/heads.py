"""A detector's heads: small convolutions that read one map."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kpjax.nn.layers import ConvParams, conv2d

Array = jax.Array


class Heads(nn.Module):
    """For each head a 3x3 convolution, ReLU and a 1x1 convolution.  (B, h, w, C) -> float32 maps.

    The 3x3 convolutions read the same map, so they run as one wider convolution.
    The heatmap's bias starts at -2.19, a score of 0.1 everywhere (CornerNet's supplement;
    Lin et al. 2017), without which the first steps are lost to the background.
    """

    channels: dict[str, int]
    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> dict[str, Array]:
        first = {head: ConvParams(self.features, name=f"{head}_conv")(x.shape[-1]) for head in self.channels}
        kernel = jnp.concatenate([kernel for kernel, _ in first.values()], axis=-1).astype(self.dtype)
        bias = jnp.concatenate([bias for _, bias in first.values() if bias is not None]).astype(self.dtype)
        hidden = nn.relu(conv2d(x.astype(self.dtype), kernel, 1, ((1, 1), (1, 1))) + bias)
        outputs = {}
        for i, (head, channels) in enumerate(self.channels.items()):
            heat = head.endswith(("heat", "heatmap"))
            out_kernel, out_bias = ConvParams(
                channels,
                kernel=(1, 1),
                kernel_init=nn.initializers.normal(0.01 if heat else 0.001),
                bias_init=nn.initializers.constant(-2.19 if heat else 0.0),
                name=f"{head}_out",
            )(self.features)
            assert out_bias is not None
            part = hidden[..., i * self.features : (i + 1) * self.features].astype(jnp.float32)
            # Logits decide accuracy: float32 whatever the activations are.
            outputs[head] = jnp.einsum("bhwc,cd->bhwd", part, out_kernel[0, 0], precision="highest") + out_bias
        return outputs
