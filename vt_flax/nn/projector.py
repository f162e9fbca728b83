"""The projector: tokens written back to the feature map."""

import functools
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from vt_flax.fused.folding import fold, fuses, head_blocks
from vt_flax.fused.lazy_map import LazyMap
from vt_flax.fused.moment_norm import MomentNorm
from vt_flax.fused.pixel_attention import write_back
from vt_flax.nn.layers import Linear, LinearKernel, StochasticDepth, split_heads
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
      formulation: see `nn.visual_transformer.VTOptions`.
      norm: normalisation of the modules.
      dtype: type of the computation; the softmax is float32.
    """

    features: int
    heads: int = 16
    groups: int = 1
    survival_probability: float = 1.0
    formulation: str = "printed"
    norm: Normalization = Normalization()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array | LazyMap,
        tokens: jax.Array,
        train: bool,
        lazy: bool = False,
    ) -> jax.Array | LazyMap:
        """Writes tokens back.

        Args:
          x: (batch, H, W, C_in).
          tokens: (batch, L, C_T).
          train: whether batch statistics are those of this batch.
          lazy: whether the normalisation is left to those who read the result, if it
            can be.

        Returns:
          (batch, H, W, features). The softmax over tokens of each pixel is sown as
          `projection`, (batch, heads, L, H, W).

        Raises:
          UserError: for channels that heads or groups do not divide.

        Source: v1 section 3.3; v4 section 3.3.
        """
        x = LazyMap.of(x)
        chex.assert_rank([x.pixels, tokens], [4, 3])
        size = x.pixels.shape[1:3]
        tokens = tokens.astype(self.dtype)
        key = self._linear(tokens, 1, "key", train=train)
        key = key / (self.features // self.heads) ** 0.5
        value = self._linear(tokens, 1, "value", train=train)
        # Of the values, which is less work than of what they write.
        drop = StochasticDepth(self.survival_probability, name="depth")
        value = drop(value, train=train)
        if fuses(self, self.formulation, self.norm):
            out, affine = self._fused(x, key, value, train=train)
            found = LazyMap(out.reshape(-1, *size, self.features), affine)
            return found if lazy else found.array()
        out = self._printed(x, key, value, train=train)
        out = self.norm.tokens(out, "norm", train=train)
        return out.reshape(-1, *size, self.features)

    def _linear(self, source, groups, name, *, train):
        mapped = Linear(self.features, groups, self.dtype, name=name)(source)
        return self.norm.map(mapped, f"{name}_norm", train=train)

    def _printed(self, x, key, value, *, train):
        size, x = x.pixels.shape[1:3], x.flat_array(self.dtype)
        query = self._linear(x, self.groups, "query", train=train)
        query, key, value = (split_heads(a, self.heads) for a in (query, key, value))
        logits = jnp.einsum("bphd,blhd->bhlp", query, key).astype(jnp.float32)
        weights = jax.nn.softmax(logits, axis=2)
        maps = weights.reshape(*weights.shape[:3], *size)
        self.sow("intermediates", "projection", maps)
        written = jnp.einsum("bhlp,blhd->bphd", weights.astype(self.dtype), value)
        if x.shape[-1] != self.features:
            x = self._linear(x, 1, "shortcut", train=train)
        return x + written.reshape(x.shape)

    def _fused(self, x, key, value, *, train):
        """The sum (batch, pixels, features), and what normalises it."""
        pixels = x.flat(self.dtype)
        batch, count, channels = pixels.shape

        def kernel(groups, name):
            module = LinearKernel(self.features, groups, self.dtype, name=name)
            return module(channels)

        write = functools.partial(
            write_back,
            pixels,
            fold(kernel(self.groups, "query"), key, self.heads),
            value,
            head_blocks(self.heads, self.groups),
            affine=x.affine,
            shortcut=None if channels == self.features else kernel(1, "shortcut"),
        )
        if self.norm.placement == "none":
            return write()[0], None
        out = None

        def means(origin):
            nonlocal out
            out, sums = write(origin=origin[None, None])
            return sums[:, 0] / count, sums[:, 1] / count

        layer = MomentNorm.of(self.norm, "norm", means=means)
        normalise = layer(self.features, batch, train=train)
        if out is None:  # with running statistics nobody asks for moments
            out, _ = write()
        return out, normalise.scale_and_bias()
