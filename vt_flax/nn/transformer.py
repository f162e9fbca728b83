"""Interactions of tokens: the token transformer, and those of the ablations."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from vt_flax.nn.layers import StochasticDepth, VTLayers, split_heads


class TokenTransformer(nn.Module):
    """Self-attention over tokens and a feed-forward map, both residual.

    T' = T + softmax over keys of (T W_Q)(T W_K)^T / sqrt(d) (T W_V), then
    T' + T' F (linear, v1) or T' + ReLU(T' F1) F2 (mlp, v4).

    Attributes:
      heads: number of heads; d = (C_T / 2) / heads.
      groups: groups of the 1 x 1 key, query and value maps.
      feed_forward: `"linear"` (v1) or `"mlp"` (v4).
      survival_probability: stochastic depth of each of the two residual branches.
      layers: dtype and normalization; the softmax is float32.
    """

    heads: int = 16
    groups: int = 1
    feed_forward: str = "linear"
    survival_probability: float = 1.0
    layers: VTLayers = VTLayers()

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool) -> jax.Array:
        """Maps tokens (batch, L, C_T) to tokens of the same shape.

        Raises:
          UserError: for channels that heads or groups do not divide.

        Source: v1 section 3.2; v4 section 3.2.
        """
        chex.assert_rank(tokens, 3)
        layers = self.layers
        tokens = tokens.astype(layers.dtype)
        channels = tokens.shape[-1]

        def linear(features, name):
            mapped = layers.linear(features, self.groups, name=name)(tokens)
            mapped = layers.norm_map(mapped, f"{name}_norm", train=train)
            return split_heads(mapped, self.heads)

        key = linear(channels // 2, "key")
        query = linear(channels // 2, "query")
        value = linear(channels, "value")
        logits = jnp.einsum("blhd,bmhd->bhlm", query, key).astype(jnp.float32)
        logits = logits / key.shape[-1] ** 0.5
        attention = jax.nn.softmax(logits, axis=-1).astype(layers.dtype)
        mixed = jnp.einsum("bhlm,bmhd->blhd", attention, value).reshape(tokens.shape)
        drop = StochasticDepth(self.survival_probability, name="attention_depth")
        tokens = tokens + drop(mixed, train=train)

        if self.feed_forward == "linear":
            branch = layers.linear(channels, name="feed_forward")(tokens)
            branch = layers.norm_tokens(branch, "feed_forward_norm", train=train)
        else:
            hidden = layers.linear(channels, name="feed_forward1")(tokens)
            hidden = layers.norm_tokens(hidden, "feed_forward1_norm", train=train)
            branch = layers.linear(channels, name="feed_forward2")(nn.relu(hidden))
            branch = layers.norm_tokens(branch, "feed_forward2_norm", train=train)
        drop = StochasticDepth(self.survival_probability, name="feed_forward_depth")
        return tokens + drop(branch, train=train)


class LinearInteraction(nn.Module):
    """Interactions of v4's ablation: none, T + T W, or a graph convolution, T + G T W.

    G is a learned L x L matrix, which fixes the number of tokens.

    Attributes:
      graph: whether tokens are mixed by G.
      survival_probability: stochastic depth of the residual branch.
      layers: dtype and normalization.
    """

    graph: bool = False
    survival_probability: float = 1.0
    layers: VTLayers = VTLayers()

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool) -> jax.Array:
        """Maps tokens (batch, L, C_T) to tokens of the same shape."""
        chex.assert_rank(tokens, 3)
        layers = self.layers
        tokens = tokens.astype(layers.dtype)
        count, channels = tokens.shape[1:]
        branch = tokens
        if self.graph:
            init = nn.initializers.lecun_normal()
            adjacency = self.param("adjacency", init, (count, count), jnp.float32)
            branch = jnp.einsum("lm,bmc->blc", adjacency.astype(layers.dtype), branch)
        branch = layers.linear(channels, name="map")(branch)
        branch = layers.norm_tokens(branch, "norm", train=train)
        drop = StochasticDepth(self.survival_probability, name="depth")
        return tokens + drop(branch, train=train)
