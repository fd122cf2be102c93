"""Deep layer aggregation (DLA-34; Yu et al. 2018, arXiv 1707.06484) and its up-sampling necks.

With deformable convolution the neck is that of Objects as Points; without, the plain one that the same
authors released as `dlav0`.  Parameter names follow the originals: `base_layer`, `level0` ... in
`trunk`; `ida_0/proj_1`, `ida_0/up_1`, `ida_0/node_1` ... in `neck`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kpjax.nn.convolution import Precision
from kpjax.nn.deform_conv import DeformConv
from kpjax.nn.layers import BatchNorm, Conv, ConvBN, UpsampleDepthwise, max_pool_2x2

Array = jax.Array

# depth -> levels of each stage's tree; 0: one convolution
LEVELS: dict[int, tuple[int, ...]] = {34: (0, 0, 1, 2, 2, 1)}

_FIRST = 2  # the stage of stride 4, to which the neck brings the others


class Block(nn.Module):
    """A leaf of the tree: two 3x3 convolutions, and the shortcut that the tree passes in."""

    features: int
    stride: int
    bn_groups: int
    dtype: Any
    precision: Precision = None

    @nn.compact
    def __call__(self, x: Array, shortcut: Array, train: bool) -> Array:
        norm = functools.partial(BatchNorm, groups=self.bn_groups, dtype=self.dtype)
        conv = functools.partial(Conv, dtype=self.dtype, precision=self.precision)
        x = conv(self.features, stride=self.stride, name="conv1")(x)
        x = nn.relu(norm(name="bn1")(x, train))
        x = norm(name="bn2")(conv(self.features, name="conv2")(x), train)
        return nn.relu(x + shortcut)


class Tree(nn.Module):
    """Hierarchical aggregation (section 3.2): two subtrees, or leaves at level 1, and a root that joins all.

    keep_input: the root sees the (pooled) input too.  The root also sees `children`: the outputs so
    far of the trees around this one.  (B, H, W, C) -> (B, H / stride, W / stride, features).
    """

    levels: int
    features: int
    stride: int
    keep_input: bool
    bn_groups: int
    remat: bool
    dtype: Any
    precision: Precision = None

    @nn.compact
    def __call__(self, x: Array, train: bool, children: Sequence[Array] = ()) -> Array:
        settings: dict[str, Any] = {"bn_groups": self.bn_groups, "dtype": self.dtype, "precision": self.precision}
        bottom = max_pool_2x2(x) if self.stride > 1 else x
        seen = [*children, bottom] if self.keep_input else [*children]
        if self.levels > 1:
            subtree = functools.partial(
                Tree, self.levels - 1, self.features, keep_input=False, remat=self.remat, **settings
            )
            x = subtree(stride=self.stride, name="tree1")(x, train)
            return subtree(stride=1, name="tree2")(x, train, [*seen, x])
        shortcut = bottom
        if x.shape[-1] != self.features:
            project = Conv(self.features, kernel=1, dtype=self.dtype, precision=self.precision, name="project_conv")
            shortcut = project(bottom)
            shortcut = BatchNorm(groups=self.bn_groups, dtype=self.dtype, name="project_bn")(shortcut, train)
        block: Any = nn.remat(Block, static_argnums=(3,)) if self.remat else Block
        first = block(self.features, self.stride, name="tree1", **settings)(x, shortcut, train)
        second = block(self.features, 1, name="tree2", **settings)(first, first, train)
        joined = jnp.concatenate([second, first, *seen], axis=-1)
        return ConvBN(self.features, kernel=1, name="root", **settings)(joined, train)


class DLA(nn.Module):
    """The trunk without its classifier: (B, H, W, 3) -> six maps, of strides 1 to 32 and width * stride channels.

    width: channels at full resolution (16 in the paper).  remat: recompute each leaf's activations
    in the backward pass.
    """

    depth: int = 34
    width: int = 16
    bn_groups: int = 1
    remat: bool = False
    dtype: Any = jnp.float32
    precision: Precision = None

    @nn.compact
    def __call__(self, images: Array, train: bool) -> list[Array]:
        settings: dict[str, Any] = {"bn_groups": self.bn_groups, "dtype": self.dtype, "precision": self.precision}
        x = ConvBN(self.width, kernel=7, name="base_layer", **settings)(images, train)
        maps: list[Array] = []
        for stage, levels in enumerate(LEVELS[self.depth]):
            features, stride = self.width * 2**stage, min(stage, 1) + 1
            if levels:
                tree = Tree(
                    levels,
                    features,
                    stride,
                    keep_input=stage > _FIRST,
                    remat=self.remat,
                    name=f"level{stage}",
                    **settings,
                )
                x = tree(x, train)
            else:
                x = ConvBN(features, stride=stride, name=f"level{stage}", **settings)(x, train)
            maps.append(x)
        return maps


class Aggregation(nn.Module):
    """Iterative aggregation (section 3.1): bring each map to the first one's size and width, and add it on.

    maps: (B, h, w, C), then smaller ones.  Returns the result of each step: one map fewer.
    dcn: projections and nodes are deformable 3x3 convolutions, and a node sees the sum of both maps; else
    projections are 1x1 convolutions, and a node, a 3x3 one, sees both.
    """

    features: int
    dcn: bool
    bn_groups: int
    remat: bool
    dtype: Any
    precision: Precision = None

    @nn.compact
    def __call__(self, maps: Sequence[Array], train: bool) -> list[Array]:
        conv_block: Any = nn.remat(ConvBN, static_argnums=(2,)) if self.remat else ConvBN
        settings: dict[str, Any] = {
            "layer": DeformConv if self.dcn else Conv,
            "bn_groups": self.bn_groups,
            "dtype": self.dtype,
            "precision": self.precision,
        }
        x, *others = maps
        steps = []
        for i, other in enumerate(others, start=1):
            factor = x.shape[1] // other.shape[1]
            y = conv_block(self.features, kernel=3 if self.dcn else 1, name=f"proj_{i}", **settings)(other, train)
            y = UpsampleDepthwise(factor, dtype=self.dtype, name=f"up_{i}")(y)
            both = x + y if self.dcn else jnp.concatenate([x, y], axis=-1)
            x = conv_block(self.features, name=f"node_{i}", **settings)(both, train)
            steps.append(x)
        return steps


class DLANeck(nn.Module):
    """Aggregates maps of strides 4, 8, 16 ... into one of stride 4, (B, h, w, C) of the first one's width.

    From the smallest map upwards, each is aggregated with all smaller ones.  With dcn the results
    of strides 4, 8 and 16 are aggregated once more.
    """

    dcn: bool = True
    bn_groups: int = 1
    remat: bool = False
    dtype: Any = jnp.float32
    precision: Precision = None

    @nn.compact
    def __call__(self, maps: Sequence[Array], train: bool) -> Array:
        def aggregation(features: int, name: str) -> Aggregation:
            settings = (self.bn_groups, self.remat, self.dtype, self.precision)
            return Aggregation(features, self.dcn, *settings, name=name)

        maps = list(maps)
        results: list[Array] = []
        for i, start in enumerate(reversed(range(len(maps) - 1))):
            maps[start + 1 :] = aggregation(maps[start].shape[-1], f"ida_{i}")(maps[start:], train)
            results.insert(0, maps[-1])
        if self.dcn:
            return aggregation(results[0].shape[-1], "ida_up")(results, train)[-1]
        return results[0]


class DLAUp(nn.Module):
    """Trunk and neck: images (B, H, W, 3), H and W multiples of 32 -> [(B, H / 4, W / 4, 4 width)]."""

    depth: int = 34
    width: int = 16
    dcn: bool = True
    bn_groups: int = 1
    remat: bool = False
    dtype: Any = jnp.float32
    precision: Precision = None

    @nn.compact
    def __call__(self, images: Array, train: bool) -> list[Array]:
        settings = (self.bn_groups, self.remat, self.dtype, self.precision)
        trunk = DLA(self.depth, self.width, *settings, name="trunk")
        neck = DLANeck(self.dcn, *settings, name="neck")
        return [neck(trunk(images.astype(self.dtype), train)[_FIRST:], train)]
