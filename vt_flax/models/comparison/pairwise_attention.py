"""Pairwise self-attention of SAN (Zhao et al., 2020)."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vt_flax.fused.moment_norm import MomentNorm
from vt_flax.models.comparison.local_attention import aggregate, attend, group_count
from vt_flax.models.comparison.san_attention import (
    SHARE,
    Kernel,
    SANAttention,
    moments,
    rectified,
)
from vt_flax.models.comparison.windows import sum_over_window


def _relation(centres: Any, maps: Any) -> jax.Array:
    """Differences of features and of places, joined; float32."""
    features, places = (
        x.astype(jnp.float32) - y.astype(jnp.float32)
        for x, y in zip(centres, maps, strict=True)
    )
    places = jnp.broadcast_to(places, (*features.shape[:-1], places.shape[-1]))
    return jnp.concatenate([features, places], -1)


def _pair_logits(dtype: Any, shared: Any, each: Any, maps: Any) -> jax.Array:
    """The logits of an offset, (batch, H, W, groups)."""
    del each
    centres, layers, bias = shared
    x = _relation(centres, maps)
    for norm, kernel in layers:
        x = rectified(x, norm, kernel, dtype)
    return x + bias


class PairwiseAttention(SANAttention):
    """Weights are the softmax over the window of a map of (q - k, difference in place).

    Places are column and row from -1 to 1 over the map, through a learned 2 x 2 map.
    """

    @nn.nowrap
    def weigh(self, query, key, value, window, train):
        """See `SANAttention`."""
        relations, groups = query.shape[-1], group_count(value.shape[-1], SHARE)
        place = self._places(*query.shape[1:3])
        first = Kernel(relations + 2, relations, name="map1")()
        second = Kernel(relations, groups, name="map2")()
        bias = self.param("map2_bias", nn.initializers.zeros, (groups,), jnp.float32)
        if self.formulation == "unfold":
            centres = (query[..., None, :], place[..., None, :])
            x = _relation(centres, (window.unfold(key), window.unfold(place)))
            x = self.layer(x, "norm1", first, train)
            x = self.layer(x, "norm2", second, train)
            weights = jax.nn.softmax(x.astype(jnp.float32) + bias, axis=3)
            return aggregate(weights, window.unfold(value), SHARE)

        centres, maps = (query, place), (key, place)

        def norm(name, made, channels):
            def means(origin):
                total = sum_over_window(
                    lambda _, maps_o: moments(made(_relation(centres, maps_o)), origin),
                    window, (), maps,
                )  # fmt: skip
                return jax.tree.map(lambda x: x / self.size**2, total)

            layer = MomentNorm.of(self.norm, name, means=means)
            return layer(channels, query.shape[0], train=train)

        norm1 = norm("norm1", lambda x: x, relations + 2)
        norm2 = norm(
            "norm2", lambda x: rectified(x, norm1, first, self.dtype), relations
        )
        shared = (centres, ((norm1, first), (norm2, second)), bias)
        score = functools.partial(_pair_logits, self.dtype)
        return attend(score, window, SHARE, shared, (), maps, value)

    def _places(self, height: int, width: int) -> jax.Array:
        """Returns the mapped place of each pixel, (1, H, W, 2)."""
        row, column = (
            jnp.linspace(-1.0, 1.0, side, dtype=jnp.float32) for side in (height, width)
        )
        grid = jnp.stack(jnp.meshgrid(column, row), -1)[None]
        return nn.Dense(2, dtype=self.dtype, name="place")(grid)
