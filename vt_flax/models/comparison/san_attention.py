"""Pairwise and patchwise self-attention of SAN (Zhao et al., 2020).

Both compute the weights by a map of two layers, with BatchNorm and ReLU in front of
each. The array of a window that BatchNorm normalizes is not stored: BatchNorm gets that
array's moments, summed over the window.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vt_flax.fused.norms import Affine, MomentNorm, example_means
from vt_flax.fused.parameters import LinearKernel
from vt_flax.models.comparison.local_attention import (
    Window,
    attend,
    over_window,
    sum_over_window,
    weigh,
)
from vt_flax.nn.layers import Layers

# Number of channels per weight.
GROUP_CHANNELS = 8


def norm_relu_map(x: jax.Array, norm: Any, kernel: jax.Array, dtype: Any) -> jax.Array:
    """Applies BatchNorm, ReLU and a linear map, and returns float32."""
    x = nn.relu(norm(x)).astype(dtype) @ kernel.astype(dtype)
    return x.astype(jnp.float32)


class SANAttention(nn.Module):
    """Base of SAN's attentions: query, key and value maps, and 8 channels per weight.

    Beyond the border the maps are mirrored.

    Attributes:
      size: side of the window in pixels, odd.
      layers: dtype and BatchNorm settings; the softmax is float32.
    """

    size: int = 7
    layers: Layers = Layers()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps (batch, H, W, C) to (batch, H, W, C / 4).

        Query and key have C / 16 channels.

        Source: Zhao et al. (2020), sections 3 and 4, and the authors' code for biases,
        BatchNorm and borders.
        """
        channels, dtype = x.shape[-1], self.layers.dtype
        query, key, value = (
            nn.Dense(max(1, channels // divisor), dtype=dtype, name=name)(x)
            for name, divisor in (("query", 16), ("key", 16), ("value", 4))
        )
        groups = math.ceil(value.shape[-1] / GROUP_CHANNELS)
        inputs, hidden, outputs = self.widths(query.shape[-1], groups)
        parameters = (
            LinearKernel(hidden, name="map1")(inputs)[0],
            LinearKernel(outputs, name="map2")(hidden)[0],
            self.param("map2_bias", nn.initializers.zeros, (outputs,), jnp.float32),
        )
        window = Window(self.size, padding="reflect")
        return self.weighted_sums(query, key, value, parameters, window, train)

    @nn.nowrap
    def moment_norm(self, name: str, means: Any, shape: Any, train: bool) -> Affine:
        """Returns the BatchNorm of an array of this shape from its moments."""
        norm = self.layers.batch_norm(name, kind=MomentNorm, means=means)
        return norm(shape[-1], shape[0], train=train)


def relation(centers: Any, maps: Any) -> jax.Array:
    """Returns differences of features and of positions, concatenated; float32."""
    features, positions = (
        x.astype(jnp.float32) - y.astype(jnp.float32)
        for x, y in zip(centers, maps, strict=True)
    )
    positions = jnp.broadcast_to(positions, (*features.shape[:-1], 2))
    return jnp.concatenate([features, positions], -1)


def pairwise_logits(dtype: Any, shared: Any, per_offset: Any, maps: Any) -> jax.Array:
    """Returns the logits of one offset, (batch, H, W, groups)."""
    del per_offset
    centers, layers, bias = shared
    x = relation(centers, maps)
    for norm, kernel in layers:
        x = norm_relu_map(x, norm, kernel, dtype)
    return x + bias


class PairwiseAttention(SANAttention):
    """Attention by the softmax over the window of a map of (q - k, position offset).

    Positions are column and row from -1 to 1 over the map, under a learned 2 x 2 map.
    """

    @nn.nowrap
    def widths(self, relations: int, groups: int) -> tuple[int, int, int]:
        """Returns the channels of the weight map: inputs, hidden and outputs."""
        return relations + 2, relations, groups

    @nn.nowrap
    def weighted_sums(self, query, key, value, parameters, window, train):
        """Returns the weighted sums of values, (batch, H, W, C / 4)."""
        position, dtype = self.positions(*query.shape[1:3]), self.layers.dtype
        centers, maps = (query, position), (key, position)
        first, second, bias = parameters

        def norm(name, layer, channels):
            def means(origin):
                def term(_, maps):
                    return example_means(origin, layer(relation(centers, maps)))

                total = sum_over_window(term, window, (), maps)
                return jax.tree.map(lambda x: x / window.size**2, total)

            return self.moment_norm(name, means, (query.shape[0], channels), train)

        norm1 = norm("norm1", lambda x: x, len(first))
        layer1 = functools.partial(norm_relu_map, norm=norm1, kernel=first, dtype=dtype)
        norm2 = norm("norm2", layer1, len(second))
        shared = (centers, ((norm1, first), (norm2, second)), bias)
        score = functools.partial(pairwise_logits, dtype)
        return attend(score, window, GROUP_CHANNELS, shared, (), maps, value)

    def positions(self, height: int, width: int) -> jax.Array:
        """Returns the mapped position of each pixel, (1, H, W, 2)."""
        row, column = (
            jnp.linspace(-1.0, 1.0, side, dtype=jnp.float32) for side in (height, width)
        )
        grid = jnp.stack(jnp.meshgrid(column, row), -1)[None]
        return nn.Dense(2, dtype=self.layers.dtype, name="position")(grid)


class PatchwiseAttention(SANAttention):
    """Attention with all weights of a window by one map of q and every k; no softmax.

    The map's inputs are q's channels and then, offset by offset, k's.
    """

    @nn.nowrap
    def widths(self, relations: int, groups: int) -> tuple[int, int, int]:
        """Returns the channels of the weight map: inputs, hidden and outputs."""
        return (1 + self.size**2) * relations, groups, self.size**2 * groups

    @nn.nowrap
    def weighted_sums(self, query, key, value, parameters, window, train):
        """Returns the weighted sums of values, (batch, H, W, C / 4)."""
        first, second, bias = parameters
        dtype, offsets = self.layers.dtype, window.size**2
        relations, groups = query.shape[-1], len(second)

        def split(x):
            """Splits inputs into those of q, and those of each k, (offsets, ...)."""
            keys = x[..., relations:].reshape(*x.shape[:-1], offsets, relations)
            return x[..., :relations], jnp.moveaxis(keys, -2, 0)

        def means(origin):
            of_query, of_keys = split(origin)
            keys = jax.lax.map(*over_window(example_means, window, of_keys, key))
            pairs = zip(example_means(of_query, query), keys, strict=True)
            return tuple(jnp.concatenate([q, *k], -1) for q, k in pairs)

        norm = self.moment_norm("norm1", means, (query.shape[0], len(first)), train)
        query_norm, key_norms = (
            jax.tree.map(lambda x, i=i: split(x)[i], norm) for i in range(2)
        )
        key_kernels = first[relations:].reshape(offsets, relations, groups)
        x = norm_relu_map(query, query_norm, first[:relations], dtype)
        x += sum_over_window(
            lambda layer, key: norm_relu_map(key, *layer, dtype),
            window,
            (key_norms, key_kernels),
            key,
        )
        x = self.layers.batch_norm("norm2")(x, train=train)
        x = nn.relu(x).astype(dtype)

        def weighted_values(layer, value):
            kernel, bias = layer
            weights = (x @ kernel).astype(jnp.float32) + bias
            return weigh(weights, value, GROUP_CHANNELS)

        kernels = second.reshape(groups, offsets, groups).transpose(1, 0, 2)
        layers = kernels.astype(dtype), bias.reshape(offsets, groups)
        return sum_over_window(weighted_values, window, layers, value).astype(dtype)
