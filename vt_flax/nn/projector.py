"""The projector: tokens written back to the feature map."""

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from vt_flax.nn.layers import Linear, StochasticDepth, split_heads
from vt_flax.nn.norm import Normalization


class Projector(nn.Module):
    """Every pixel asks the tokens: X + softmax over tokens of (Q K^T / sqrt(d)) V.

    Q = X W_Q, K = T W_K, V = T W_V, per head. Where the channels change, X goes through
    a 1 x 1 shortcut. The sum is normalised.

    Attributes:
      features: output channels C.
      heads: number of heads; d = C / heads.
      groups: groups of the 1 x 1 query map.
      survival_probability: stochastic depth of what is written back.
      norm: normalisation of the modules.
      dtype: type of the computation; the softmax is float32.
    """

    features: int
    heads: int = 16
    groups: int = 1
    survival_probability: float = 1.0
    norm: Normalization = Normalization()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, tokens: jax.Array, *, train: bool) -> jax.Array:
        """Writes tokens back.

        Args:
          x: (batch, H, W, C_in).
          tokens: (batch, L, C_T).
          train: whether batch statistics are those of this batch.

        Returns:
          (batch, H, W, features). The softmax over tokens of each pixel is sown as
          `projection`, (batch, heads, L, H, W).

        Raises:
          UserError: for channels that heads or groups do not divide.

        Source: v1 section 3.3; v4 section 3.3.
        """
        chex.assert_rank([x, tokens], [4, 3])
        batch, height, width, channels = x.shape
        x = x.astype(self.dtype).reshape(batch, height * width, channels)
        tokens = tokens.astype(self.dtype)

        def linear(source, groups, name):
            mapped = Linear(self.features, groups, self.dtype, name=name)(source)
            mapped = self.norm.map(mapped, f"{name}_norm", train=train)
            return split_heads(mapped, self.heads)

        query = linear(x, self.groups, "query")
        key = linear(tokens, 1, "key")
        value = linear(tokens, 1, "value")
        logits = jnp.einsum("bphd,blhd->bhlp", query, key).astype(jnp.float32)
        logits = logits / (self.features // self.heads) ** 0.5
        weights = jax.nn.softmax(logits, axis=2)
        self.sow(
            "intermediates",
            "projection",
            weights.reshape(*weights.shape[:3], height, width),
        )
        written = jnp.einsum("bhlp,blhd->bphd", weights.astype(self.dtype), value)
        written = written.reshape(batch, height * width, self.features)

        if channels != self.features:
            x = Linear(self.features, dtype=self.dtype, name="shortcut")(x)
            x = self.norm.map(x, "shortcut_norm", train=train)
        drop = StochasticDepth(self.survival_probability, name="depth")
        out = self.norm.tokens(x + drop(written, train=train), "norm", train=train)
        return out.reshape(batch, height, width, self.features)
