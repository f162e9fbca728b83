"""How tokens interact: the token transformer, and what the ablations put instead."""

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from vt_flax.errors import UserError
from vt_flax.nn.layers import Linear, StochasticDepth, split_heads
from vt_flax.nn.norm import Normalization


class TokenTransformer(nn.Module):
    """Self-attention over tokens and a feed-forward map, both residual.

    T' = T + softmax over keys of (T W_Q)(T W_K)^T / sqrt(d) (T W_V), then
    T' + T' F (linear, v1) or T' + ReLU(T' F1) F2 (mlp, v4).

    Attributes:
      heads: number of heads; d = (C_T / 2) / heads.
      groups: groups of the 1 x 1 key, query and value maps.
      feed_forward: `"linear"` (v1) or `"mlp"` (v4).
      survival_probability: stochastic depth of each of the two residual branches.
      norm: normalisation of the modules.
      dtype: type of the computation; the softmax is float32.
    """

    heads: int = 16
    groups: int = 1
    feed_forward: str = "linear"
    survival_probability: float = 1.0
    norm: Normalization = Normalization()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool) -> jax.Array:
        """Maps tokens (batch, L, C_T) to tokens of the same shape.

        Raises:
          UserError: for an unknown feed-forward, or channels that heads or groups do
            not divide.

        Source: v1 section 3.2; v4 section 3.2.
        """
        chex.assert_rank(tokens, 3)
        if self.feed_forward not in ("linear", "mlp"):
            raise UserError(f"feed_forward={self.feed_forward!r}: choose linear or mlp")
        tokens = tokens.astype(self.dtype)
        channels = tokens.shape[-1]

        def linear(features, name):
            mapped = Linear(features, self.groups, self.dtype, name=name)(tokens)
            mapped = self.norm.map(mapped, f"{name}_norm", train=train)
            return split_heads(mapped, self.heads)

        key = linear(channels // 2, "key")
        query = linear(channels // 2, "query")
        value = linear(channels, "value")
        logits = jnp.einsum("blhd,bmhd->bhlm", query, key).astype(jnp.float32)
        logits = logits / key.shape[-1] ** 0.5
        attention = jax.nn.softmax(logits, axis=-1).astype(self.dtype)
        mixed = jnp.einsum("bhlm,bmhd->blhd", attention, value).reshape(tokens.shape)
        drop = StochasticDepth(self.survival_probability, name="attention_depth")
        tokens = tokens + drop(mixed, train=train)

        if self.feed_forward == "linear":
            branch = Linear(channels, dtype=self.dtype, name="feed_forward")(tokens)
            branch = self.norm.tokens(branch, "feed_forward_norm", train=train)
        else:
            hidden = Linear(channels, dtype=self.dtype, name="feed_forward1")(tokens)
            hidden = self.norm.tokens(hidden, "feed_forward1_norm", train=train)
            branch = Linear(channels, dtype=self.dtype, name="feed_forward2")(
                nn.relu(hidden)
            )
            branch = self.norm.tokens(branch, "feed_forward2_norm", train=train)
        drop = StochasticDepth(self.survival_probability, name="feed_forward_depth")
        return tokens + drop(branch, train=train)


class LinearInteraction(nn.Module):
    """No interaction (v4, ablation): each token alone, T + T W.

    Attributes:
      survival_probability: stochastic depth of the residual branch.
      norm: normalisation of the modules.
      dtype: type of the computation.
    """

    survival_probability: float = 1.0
    norm: Normalization = Normalization()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool) -> jax.Array:
        """Maps tokens (batch, L, C_T) to tokens of the same shape."""
        chex.assert_rank(tokens, 3)
        tokens = tokens.astype(self.dtype)
        branch = Linear(tokens.shape[-1], dtype=self.dtype, name="map")(tokens)
        branch = self.norm.tokens(branch, "norm", train=train)
        drop = StochasticDepth(self.survival_probability, name="depth")
        return tokens + drop(branch, train=train)


class GraphInteraction(nn.Module):
    """Graph convolution over tokens (v4, ablation): T + G T W with a learned G, L x L.

    G fixes the number of tokens that the parameters serve.

    Attributes:
      survival_probability: stochastic depth of the residual branch.
      norm: normalisation of the modules.
      dtype: type of the computation.
    """

    survival_probability: float = 1.0
    norm: Normalization = Normalization()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool) -> jax.Array:
        """Maps tokens (batch, L, C_T) to tokens of the same shape."""
        chex.assert_rank(tokens, 3)
        tokens = tokens.astype(self.dtype)
        count, channels = tokens.shape[1:]
        if self.has_variable("params", "adjacency"):
            served = self.get_variable("params", "adjacency").shape[0]
            if served != count:
                raise UserError(
                    f"the graph's parameters serve {served} tokens, not {count}"
                )
        adjacency = self.param(
            "adjacency", nn.initializers.lecun_normal(), (count, count), jnp.float32
        )
        mixed = jnp.einsum("lm,bmc->blc", adjacency.astype(self.dtype), tokens)
        branch = Linear(channels, dtype=self.dtype, name="map")(mixed)
        branch = self.norm.tokens(branch, "norm", train=train)
        drop = StochasticDepth(self.survival_probability, name="depth")
        return tokens + drop(branch, train=train)
