"""Patchwise self-attention of SAN (Zhao et al., 2020)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vt_flax.fused.moment_norm import MomentNorm
from vt_flax.models.comparison.local_attention import aggregate, group_count, weighted
from vt_flax.models.comparison.san_attention import (
    SHARE,
    Kernel,
    SANAttention,
    moments,
    rectified,
)
from vt_flax.models.comparison.windows import stack_over_window, sum_over_window


class PatchwiseAttention(SANAttention):
    """All weights of a window at once, by a map of q and every k in it; no softmax.

    The first layer's channels are q's and then, offset by offset, k's.
    """

    @nn.nowrap
    def weigh(self, query, key, value, window, train):
        """See `SANAttention`."""
        relations, groups = query.shape[-1], group_count(value.shape[-1], SHARE)
        offsets = self.size**2
        first = Kernel((1 + offsets) * relations, groups, name="map1")()
        second = Kernel(groups, offsets * groups, name="map2")()
        bias = self.param(
            "map2_bias", nn.initializers.zeros, (offsets * groups,), jnp.float32
        )
        if self.formulation == "unfold":
            keys = window.unfold(key)
            x = jnp.concatenate(
                [query, keys.reshape(*keys.shape[:3], offsets * relations)], -1
            )
            x = self.layer(x, "norm1", first, train)
            x = self.layer(x, "norm2", second, train)
            weights = x.astype(jnp.float32) + bias
            weights = weights.reshape(*x.shape[:3], offsets, groups)
            return aggregate(weights, window.unfold(value), SHARE)

        def split(x):
            """What belongs to q, and what to the k of each offset, (offsets, ...)."""
            of_keys = x[..., relations:].reshape(*x.shape[:-1], offsets, relations)
            return x[..., :relations], jnp.moveaxis(of_keys, -2, 0)

        def means(origin):
            of_query, of_keys = split(origin)
            keys = stack_over_window(
                lambda origin_o, key_o: moments(key_o, origin_o), window, of_keys, key
            )
            return tuple(
                jnp.concatenate([mine, *theirs], -1)
                for mine, theirs in zip(moments(query, of_query), keys, strict=True)
            )

        layer = MomentNorm.of(self.norm, "norm1", means=means)
        norm = layer(len(first), query.shape[0], train=train)
        of_query, of_keys = (
            jax.tree.map(lambda x, i=i: split(x)[i], norm) for i in range(2)
        )
        kernels = first[relations:].reshape(offsets, relations, groups)
        x = rectified(query, of_query, first[:relations], self.dtype)
        x += sum_over_window(
            lambda each, key_o: rectified(key_o, *each, self.dtype),
            window, (of_keys, kernels), key,
        )  # fmt: skip
        x = nn.relu(self.norm.layer("norm2")(x, train=train)).astype(self.dtype)

        def weighted_values(each, value_o):
            kernel, bias_o = each
            weights = (x @ kernel).astype(jnp.float32) + bias_o
            return weighted(weights, value_o, SHARE)

        kernels = second.reshape(groups, offsets, groups).transpose(1, 0, 2)
        each = kernels.astype(self.dtype), bias.reshape(offsets, groups)
        return sum_over_window(weighted_values, window, each, value).astype(self.dtype)
