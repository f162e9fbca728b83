"""Projector: tokens written back to the feature map."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from vt_flax.nn.layers import StochasticDepth, VTLayers, split_heads


class Projector(nn.Module):
    """Attention from pixels to tokens: X + softmax over tokens of (Q K^T / sqrt(d)) V.

    Q = X W_Q, K = T W_K, V = T W_V, per head. Where the channels change, X goes through
    a 1 x 1 shortcut. The sum is normalized.

    Attributes:
      features: output channels C.
      heads: number of heads; d = C / heads.
      groups: groups of the 1 x 1 query map.
      survival_probability: stochastic depth of what is written back.
      layers: dtype and normalization; the softmax is float32.
    """

    features: int
    heads: int = 16
    groups: int = 1
    survival_probability: float = 1.0
    layers: VTLayers = VTLayers()

    @nn.compact
    def __call__(self, x: jax.Array, tokens: jax.Array, train: bool) -> jax.Array:
        """Writes tokens back.

        Args:
          x: (batch, H, W, C_in).
          tokens: (batch, L, C_T).
          train: whether batch statistics and stochastic depth are live.

        Returns:
          (batch, H, W, features). The attention map is sown as `projection`,
          (batch, heads, L, H, W).

        Raises:
          UserError: for channels that heads or groups do not divide.

        Source: v1 section 3.3; v4 section 3.3.
        """
        chex.assert_rank([x, tokens], [4, 3])
        tokens = tokens.astype(self.layers.dtype)
        key = self.linear(tokens, 1, "key", train=train)
        key = key / (self.features // self.heads) ** 0.5
        value = self.linear(tokens, 1, "value", train=train)
        # Dropping the values drops what they write.
        drop = StochasticDepth(self.survival_probability, name="depth")
        value = drop(value, train=train)
        return self.write(x.astype(self.layers.dtype), key, value, train=train)

    def linear(self, x: jax.Array, groups: int, name: str, *, train: bool) -> jax.Array:
        """Maps (..., C) to (..., features), normalized with `every_map`."""
        mapped = self.layers.linear(self.features, groups, name=name)(x)
        return self.layers.norm_map(mapped, f"{name}_norm", train=train)

    def write(
        self, x: jax.Array, key: jax.Array, value: jax.Array, *, train: bool
    ) -> jax.Array:
        """Adds the attention's result to the map, and normalizes the sum.

        Args:
          x: (batch, H, W, C_in).
          key: scaled by 1 / sqrt(d), (batch, L, features).
          value: (batch, L, features).
          train: whether batch statistics are live.

        Returns:
          (batch, H, W, features).
        """
        query = self.linear(x, self.groups, "query", train=train)
        query, key, value = (split_heads(a, self.heads) for a in (query, key, value))
        logits = jnp.einsum("byxhd,blhd->bhlyx", query, key).astype(jnp.float32)
        attention = jax.nn.softmax(logits, axis=2)
        self.sow("intermediates", "projection", attention)
        written = jnp.einsum("bhlyx,blhd->byxhd", attention.astype(x.dtype), value)
        if x.shape[-1] != self.features:
            x = self.linear(x, 1, "shortcut", train=train)
        out = x + written.reshape(x.shape)
        return self.layers.norm_tokens(out, "norm", train=train)
