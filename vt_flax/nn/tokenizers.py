"""Tokenizers: from a feature map to a few visual tokens.

Each module has the same call: `(x, tokens, train=...) -> tokens`, where `x` is the
feature map (batch, H, W, C), which may be a `LazyMap`, and `tokens` are the previous
module's (batch, L, C_T), or None in the first. Token coefficients are sown into the
collection `intermediates` under `coefficients`, as (batch, L, H, W) or (batch, heads,
L, H, W); this costs nothing unless the caller makes that collection mutable.
"""

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from vt_flax.errors import UserError
from vt_flax.fused.folding import apply_kernel, fold, fuses, head_blocks
from vt_flax.fused.lazy_map import LazyMap
from vt_flax.fused.pixel_attention import pool
from vt_flax.nn.layers import Linear, LinearKernel, resize, split_heads
from vt_flax.nn.norm import Normalization
from vt_flax.nn.position import PositionEncoding

# Fitted to the paper's count of the clustering row (analysis.published).
LLOYD_ITERATIONS = 5


def grid(tokens: int) -> tuple[int, int]:
    """Returns rows and columns of the most square grid with `tokens` cells."""
    rows = int(tokens**0.5)
    while tokens % rows:
        rows -= 1
    return rows, tokens // rows


class TokenMap(nn.Module):
    """The learned map W_T from pooled pixels to tokens, with the position encoding.

    Attributes:
      token_channels: C_T.
      position_encoding: whether C_p position channels are concatenated before W_T (v1).
      norm: normalisation of the modules.
      dtype: type of the computation.
    """

    token_channels: int
    position_encoding: bool = False
    norm: Normalization = Normalization()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, pooled: jax.Array, coefficients: jax.Array | None, train: bool
    ) -> jax.Array:
        """Maps pooled pixels (batch, L, C) to tokens (batch, L, C_T)."""
        if self.position_encoding:
            if coefficients is None:
                raise UserError("a pooling tokenizer has no maps for position encoding")
            position = PositionEncoding(
                norm=self.norm, dtype=self.dtype, name="position"
            )(coefficients, train=train)
            pooled = jnp.concatenate([pooled, position], -1)
        tokens = Linear(self.token_channels, dtype=self.dtype, name="map")(pooled)
        return self.norm.tokens(tokens, "norm", train=train)


class StaticTokenizer(nn.Module):
    """Static (v1) or filter (v4) tokenizer: fixed filters pick each token's pixels.

    A = softmax over pixels of X W_A / sqrt(C); V = X W_V; T = (A^T V) W_T.

    Attributes:
      tokens: L.
      token_channels: C_T.
      value_groups: groups of the 1 x 1 value map; 0 for none, V = X (v4's equation).
      position_encoding: see `TokenMap`.
      formulation: see `nn.visual_transformer.VTOptions`.
      norm: normalisation of the modules.
      dtype: type of the computation; the softmax is float32.
    """

    tokens: int
    token_channels: int
    value_groups: int = 1
    position_encoding: bool = False
    formulation: str = "printed"
    norm: Normalization = Normalization()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array | LazyMap, tokens: jax.Array | None = None, *, train: bool
    ) -> jax.Array:
        """Maps (batch, H, W, C) to tokens (batch, L, C_T); earlier tokens are unused.

        Source: v1 section 3.1 (static), v4 section 3.1.1 (filter).
        """
        x = LazyMap.of(x)
        chex.assert_rank(x.pixels, 4)
        batch, height, width, _ = x.pixels.shape
        if fuses(self, self.formulation, self.norm):
            pooled, maps = self._fused(x.flat(self.dtype), x.affine)
        else:
            pooled, maps = self._printed(x.flat_array(self.dtype), train=train)
        if maps is not None:
            maps = maps.reshape(batch, self.tokens, height, width)
        self.sow("intermediates", "coefficients", maps)
        return TokenMap(
            self.token_channels,
            self.position_encoding,
            self.norm,
            self.dtype,
            name="token",
        )(pooled, maps, train=train)

    def _printed(self, x, *, train):
        channels = x.shape[-1]
        logits = Linear(self.tokens, dtype=self.dtype, name="filter")(x)
        logits = self.norm.map(logits, "filter_norm", train=train)
        logits = logits.astype(jnp.float32) / channels**0.5
        coefficients = jnp.swapaxes(jax.nn.softmax(logits, axis=1), 1, 2)
        value = x
        if self.value_groups:
            value = Linear(channels, self.value_groups, self.dtype, name="value")(x)
            value = self.norm.map(value, "value_norm", train=train)
        pooled = jnp.einsum("blp,bpc->blc", coefficients.astype(self.dtype), value)
        return pooled, coefficients

    def _fused(self, x, affine):
        channels = x.shape[-1]
        filters = LinearKernel(self.tokens, dtype=self.dtype, name="filter")(channels)
        filters = jnp.swapaxes(filters, 1, 2) / channels**0.5
        pooled, coefficients = pool(
            x,
            filters.astype(self.dtype),
            1,
            affine=affine,
            weights=self.position_encoding,
        )
        if self.value_groups:
            value = Linear(channels, self.value_groups, self.dtype, name="value")
            pooled = value(pooled)
        return pooled, coefficients


class DynamicTokenizer(nn.Module):
    """Dynamic (v1) or recurrent (v4) tokenizer: earlier tokens pick the new ones.

    Per head A = softmax over pixels of (X W_K)(T W_Q)^T / sqrt(C / heads);
    T_new = (A^T (X W_V)) W_T.

    Attributes:
      token_channels: C_T.
      replace: `"half"` re-extracts the first half of the tokens and puts them after the
        kept second half (v1); `"all"` re-extracts every token (v4).
      heads: number of heads, dividing C.
      groups: groups of the 1 x 1 key and value maps.
      position_encoding: see `TokenMap`.
      formulation: see `nn.visual_transformer.VTOptions`.
      norm: normalisation of the modules.
      dtype: type of the computation; the softmax is float32.
    """

    token_channels: int
    replace: str = "half"
    heads: int = 16
    groups: int = 1
    position_encoding: bool = False
    formulation: str = "printed"
    norm: Normalization = Normalization()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array | LazyMap, tokens: jax.Array | None, train: bool
    ) -> jax.Array:
        """Maps (batch, H, W, C) and tokens (batch, L, C_T) to new tokens.

        Returns:
          (batch, L, token_channels).

        Raises:
          UserError: if half of an odd number of tokens is to be replaced, or if there
            are no earlier tokens.

        Source: v1 section 3.1 (dynamic), v4 section 3.1.2 (recurrent).
        """
        if tokens is None:
            raise UserError(
                "a dynamic tokenizer needs the tokens of an earlier module: make the "
                "first module static"
            )
        if self.replace not in ("half", "all"):
            raise UserError(f"replace={self.replace!r}: choose from half, all")
        x = LazyMap.of(x)
        chex.assert_rank([x.pixels, tokens], [4, 3])
        batch, height, width, channels = x.pixels.shape
        count = tokens.shape[1]
        if self.replace == "half":
            if count % 2:
                raise UserError(
                    f"half replacement needs an even number of tokens, not {count}: "
                    "change `tokens`, or replace all of them (tokenizer 'recurrent')"
                )
            source, kept = jnp.split(tokens, 2, axis=1)
        else:
            source, kept = tokens, None

        query = Linear(channels, dtype=self.dtype, name="query")(source)
        query = self.norm.map(query, "query_norm", train=train)
        query = split_heads(query, self.heads) / (channels // self.heads) ** 0.5
        if fuses(self, self.formulation, self.norm):
            pooled, maps = self._fused(x.flat(self.dtype), x.affine, query)
        else:
            pooled, maps = self._printed(x.flat_array(self.dtype), query, train=train)
        if maps is not None:
            maps = maps.reshape(batch, self.heads, source.shape[1], height, width)
        self.sow("intermediates", "coefficients", maps)
        new = TokenMap(
            self.token_channels,
            self.position_encoding,
            self.norm,
            self.dtype,
            name="token",
        )(pooled, maps, train=train)
        if kept is None:
            return new
        return jnp.concatenate([kept.astype(new.dtype), new], axis=1)

    def _printed(self, x, query, *, train):
        def linear(name):
            mapped = Linear(x.shape[-1], self.groups, self.dtype, name=name)(x)
            mapped = self.norm.map(mapped, f"{name}_norm", train=train)
            return split_heads(mapped, self.heads)

        key, value = linear("key"), linear("value")
        logits = jnp.einsum("blhd,bphd->bhlp", query, key).astype(jnp.float32)
        coefficients = jax.nn.softmax(logits, axis=-1)
        pooled = jnp.einsum("bhlp,bphd->blhd", coefficients.astype(self.dtype), value)
        return pooled.reshape(*pooled.shape[:2], x.shape[-1]), coefficients

    def _fused(self, x, affine, query):
        def kernel(name):
            module = LinearKernel(x.shape[-1], self.groups, self.dtype, name=name)
            return module(x.shape[-1])

        query = query.reshape(*query.shape[:2], x.shape[-1])
        filters = fold(kernel("key"), query, self.heads)
        blocks = head_blocks(self.heads, self.groups)
        pooled, coefficients = pool(
            x, filters, blocks, affine=affine, weights=self.position_encoding
        )
        return apply_kernel(kernel("value"), pooled, self.heads), coefficients


class ClusteringTokenizer(nn.Module):
    """Clustering tokenizer (v4, appendix): filters are k-means centroids of the pixels.

    Pixels are L2-normalised; centroids start from the map resized to L positions and
    follow Lloyd's iterations (assignment to the most similar centroid, mean,
    re-normalisation; an empty cluster keeps its centroid). With W_K the centroids,
    T = (softmax over pixels of (X W_K)^T X) W_T. No gradient flows through W_K.

    Attributes:
      tokens: L.
      token_channels: C_T.
      iterations: number of Lloyd iterations.
      position_encoding: see `TokenMap`.
      norm: normalisation of the modules.
      dtype: type of the computation; clustering and the softmax are float32.
    """

    tokens: int
    token_channels: int
    iterations: int = LLOYD_ITERATIONS
    position_encoding: bool = False
    norm: Normalization = Normalization()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array | LazyMap, tokens: jax.Array | None = None, *, train: bool
    ) -> jax.Array:
        """Maps (batch, H, W, C) to tokens (batch, L, C_T); earlier tokens are unused.

        Source: v4, appendix, clustering-based tokenizer.
        """
        x = LazyMap.of(x).array()
        chex.assert_rank(x, 4)
        batch, height, width, channels = x.shape
        start = resize(x.astype(jnp.float32), *grid(self.tokens))
        x = x.reshape(batch, height * width, channels)
        centroids = self._cluster(
            jax.lax.stop_gradient(x.astype(jnp.float32)),
            jax.lax.stop_gradient(start.reshape(batch, self.tokens, channels)),
        )
        x = x.astype(self.dtype)
        logits = jnp.einsum("blc,bpc->blp", centroids.astype(self.dtype), x)
        coefficients = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
        maps = coefficients.reshape(batch, self.tokens, height, width)
        self.sow("intermediates", "coefficients", maps)
        pooled = jnp.einsum("blp,bpc->blc", coefficients.astype(self.dtype), x)
        return TokenMap(
            self.token_channels,
            self.position_encoding,
            self.norm,
            self.dtype,
            name="token",
        )(pooled, maps, train=train)

    def _cluster(self, pixels: jax.Array, centroids: jax.Array) -> jax.Array:
        """Returns centroids (batch, L, C) after Lloyd's iterations on the sphere."""
        pixels = _unit(pixels)
        centroids = _unit(centroids)
        for _ in range(self.iterations):
            similarity = jnp.einsum("bpc,blc->bpl", pixels, centroids)
            nearest = jnp.argmax(similarity, -1)
            # The sum of each cluster by scatter, not by a one-hot product, which would
            # cost as many multiply-adds again as the similarities.
            sums = jax.vmap(
                lambda p, n: jax.ops.segment_sum(p, n, num_segments=self.tokens)
            )(pixels, nearest)
            empty = jnp.sum(jnp.abs(sums), -1, keepdims=True) == 0
            centroids = jnp.where(empty, centroids, _unit(sums))
        return centroids


def _unit(x: jax.Array) -> jax.Array:
    """Divides the last axis by its L2 norm; a zero vector stays zero."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


class PoolingTokenizer(nn.Module):
    """Pooling tokenizer (v4, appendix): the map resized bilinearly to L positions.

    It has no coefficients, so nothing is sown and no position encoding is possible.

    Attributes:
      tokens: L, laid out as the most square grid (16: 4 x 4).
      token_channels: C_T.
      norm: normalisation of the modules.
      dtype: type of the computation.
    """

    tokens: int
    token_channels: int
    norm: Normalization = Normalization()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array | LazyMap, tokens: jax.Array | None = None, *, train: bool
    ) -> jax.Array:
        """Maps (batch, H, W, C) to tokens (batch, L, C_T); earlier tokens are unused.

        Source: v4, appendix, pooling-based tokenizer.
        """
        x = LazyMap.of(x).array()
        chex.assert_rank(x, 4)
        pooled = resize(x.astype(self.dtype), *grid(self.tokens))
        pooled = pooled.reshape(x.shape[0], self.tokens, x.shape[-1])
        return TokenMap(
            self.token_channels, False, self.norm, self.dtype, name="token"
        )(pooled, None, train=train)
