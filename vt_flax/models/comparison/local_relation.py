"""The local relation layer of LR-Net (Hu et al., 2019)."""

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from vt_flax.models.comparison.local_attention import (
    aggregate,
    attend,
    check_formulation,
    group_count,
)
from vt_flax.models.comparison.windows import Window
from vt_flax.nn.layers import Linear

# Channels that share a weight.
SHARE = 8


def _composability(query: jax.Array, prior: jax.Array, key: jax.Array) -> jax.Array:
    """The logits of an offset, (batch, H', W', groups): -(q - k)^2 + g."""
    return prior - jnp.square(query.astype(jnp.float32) - key.astype(jnp.float32))


class LocalRelation(nn.Module):
    """Pixels composed by how they relate: softmax of -(q - k)^2 + g over a window.

    Query and key are one number for every 8 channels (the last group may be smaller);
    g is a map of the offset with two layers. The values are the input itself, and a
    1 x 1 map follows. Beyond the border keys and values are zero, and take part in the
    softmax [choice: the paper is silent].

    Attributes:
      features: output channels.
      stride: stride in pixels: windows are around every `stride`-th pixel.
      size: side of the window in pixels, odd.
      formulation: see `models.comparison.local_attention`.
      dtype: type of the computation; the softmax is float32.
    """

    features: int
    stride: int = 1
    size: int = 7
    formulation: str = "scan"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, H, W, C) to (batch, H / stride, W / stride, features).

        Source: Hu et al. (2019), section 3; the map of offsets is as wide inside as its
        result [choice].
        """
        chex.assert_rank(x, 4)
        check_formulation(self.formulation)
        window = Window(self.size, self.stride)
        x = x.astype(self.dtype)
        groups = group_count(x.shape[-1], SHARE)
        query = Linear(groups, dtype=self.dtype, name="query")(window.centres(x))
        key = Linear(groups, dtype=self.dtype, name="key")(x)
        offsets = jnp.asarray(window.offsets())
        prior = nn.relu(nn.Dense(groups, name="geometry1")(offsets))
        prior = nn.Dense(groups, name="geometry2")(prior)
        if self.formulation == "scan":
            x = attend(_composability, window, SHARE, query, prior, key, x)
        else:
            logits = _composability(query[..., None, :], prior, window.unfold(key))
            weights = jax.nn.softmax(logits, axis=3)
            x = aggregate(weights, window.unfold(x), SHARE)
        return Linear(self.features, dtype=self.dtype, name="out")(x)
