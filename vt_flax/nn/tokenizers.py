"""Tokenizers: from a feature map to a few visual tokens.

Each module is called as `tokenizer(x, tokens, train=train)`, where `x` is the feature
map (batch, H, W, C) and `tokens` are the previous module's (batch, L, C_T), or None in
the first module; it returns tokens (batch, L, C_T). Attention maps are sown into the
collection `intermediates` under `coefficients`, as (batch, L, H, W) or (batch, heads,
L, H, W); this costs nothing unless the caller makes that collection mutable.
"""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from vt_flax.nn.layers import VTLayers, resize, split_heads
from vt_flax.nn.position import PositionEncoding

# Fitted to the paper's count of the clustering row (paper.published).
LLOYD_ITERATIONS = 5


def grid(tokens: int) -> tuple[int, int]:
    """Returns rows and columns of the most square grid with `tokens` cells."""
    rows = int(tokens**0.5)
    while tokens % rows:
        rows -= 1
    return rows, tokens // rows


class TokenMap(nn.Module):
    """Learned map W_T from pooled pixels to tokens, with the position encoding.

    Attributes:
      token_channels: C_T.
      position_encoding: whether C_p position channels are concatenated before W_T (v1).
      layers: dtype and normalization.
    """

    token_channels: int
    position_encoding: bool = False
    layers: VTLayers = VTLayers()

    @nn.compact
    def __call__(
        self, pooled: jax.Array, attention: jax.Array | None, train: bool
    ) -> jax.Array:
        """Maps pooled pixels (batch, L, C) to tokens (batch, L, C_T)."""
        if self.position_encoding and attention is not None:
            encoding = PositionEncoding(layers=self.layers, name="position")
            position = encoding(attention, train=train)
            pooled = jnp.concatenate([pooled, position], -1)
        tokens = self.layers.linear(self.token_channels, name="map")(pooled)
        return self.layers.norm_tokens(tokens, "norm", train=train)


class StaticTokenizer(nn.Module):
    """Static (v1) or filter (v4) tokenizer: learned filters pick each token's pixels.

    A = softmax over pixels of X W_A / sqrt(C); V = X W_V; T = (A^T V) W_T.

    Attributes:
      tokens: L.
      token_channels: C_T.
      value_groups: groups of the 1 x 1 value map; 0 for none, V = X (v4's equation).
      position_encoding: see `TokenMap`.
      layers: dtype and normalization; the softmax is float32.
    """

    tokens: int
    token_channels: int
    value_groups: int = 1
    position_encoding: bool = False
    layers: VTLayers = VTLayers()

    @nn.compact
    def __call__(
        self, x: jax.Array, tokens: jax.Array | None = None, *, train: bool
    ) -> jax.Array:
        """Maps (batch, H, W, C) to tokens (batch, L, C_T); earlier tokens are unused.

        Source: v1 section 3.1 (static), v4 section 3.1.1 (filter).
        """
        chex.assert_rank(x, 4)
        batch, height, width, channels = x.shape
        pixels = x.astype(self.layers.dtype).reshape(batch, height * width, channels)
        pooled, attention = self.pool(pixels, train=train)
        if attention is not None:
            attention = attention.reshape(batch, self.tokens, height, width)
        self.sow("intermediates", "coefficients", attention)
        token_map = TokenMap(
            self.token_channels, self.position_encoding, self.layers, name="token"
        )
        return token_map(pooled, attention, train=train)

    def pool(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array | None]:
        """Pools pixels (batch, HW, C).

        Returns:
          A^T V, (batch, L, C), and A, (batch, L, HW) in float32; a formulation that
          does not compute A returns None for it.
        """
        layers, channels = self.layers, x.shape[-1]
        logits = layers.linear(self.tokens, name="filter")(x)
        logits = layers.norm_map(logits, "filter_norm", train=train)
        logits = logits.astype(jnp.float32) / channels**0.5
        attention = jnp.swapaxes(jax.nn.softmax(logits, axis=1), 1, 2)
        value = x
        if self.value_groups:
            value = layers.linear(channels, self.value_groups, name="value")(x)
            value = layers.norm_map(value, "value_norm", train=train)
        pooled = jnp.einsum("blp,bpc->blc", attention.astype(layers.dtype), value)
        return pooled, attention


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
      layers: dtype and normalization; the softmax is float32.
    """

    token_channels: int
    replace: str = "half"
    heads: int = 16
    groups: int = 1
    position_encoding: bool = False
    layers: VTLayers = VTLayers()

    @nn.compact
    def __call__(self, x: jax.Array, tokens: jax.Array, train: bool) -> jax.Array:
        """Maps (batch, H, W, C) and tokens (batch, L, C_T) to tokens (batch, L, C_T).

        Source: v1 section 3.1 (dynamic), v4 section 3.1.2 (recurrent).
        """
        chex.assert_rank([x, tokens], [4, 3])
        layers = self.layers
        batch, height, width, channels = x.shape
        source, kept = tokens, None
        if self.replace == "half":
            source, kept = jnp.split(tokens, 2, axis=1)

        query = layers.linear(channels, name="query")(source)
        query = layers.norm_map(query, "query_norm", train=train)
        query = split_heads(query, self.heads) / (channels // self.heads) ** 0.5
        pixels = x.astype(layers.dtype).reshape(batch, height * width, channels)
        pooled, attention = self.pool(pixels, query, train=train)
        if attention is not None:
            shape = (batch, self.heads, source.shape[1], height, width)
            attention = attention.reshape(shape)
        self.sow("intermediates", "coefficients", attention)
        token_map = TokenMap(
            self.token_channels, self.position_encoding, layers, name="token"
        )
        new = token_map(pooled, attention, train=train)
        if kept is None:
            return new
        return jnp.concatenate([kept.astype(new.dtype), new], axis=1)

    def pool(
        self, x: jax.Array, query: jax.Array, *, train: bool
    ) -> tuple[jax.Array, jax.Array | None]:
        """Pools pixels (batch, HW, C) by scaled queries (batch, L, heads, C / heads).

        Returns:
          A^T (X W_V), (batch, L, C), and A, (batch, heads, L, HW) in float32; a
          formulation that does not compute A returns None for it.
        """

        def linear(name):
            mapped = self.layers.linear(x.shape[-1], self.groups, name=name)(x)
            mapped = self.layers.norm_map(mapped, f"{name}_norm", train=train)
            return split_heads(mapped, self.heads)

        key, value = linear("key"), linear("value")
        logits = jnp.einsum("blhd,bphd->bhlp", query, key).astype(jnp.float32)
        attention = jax.nn.softmax(logits, axis=-1)
        pooled = jnp.einsum("bhlp,bphd->blhd", attention.astype(x.dtype), value)
        return pooled.reshape(*pooled.shape[:2], x.shape[-1]), attention


class ClusteringTokenizer(nn.Module):
    """Clustering tokenizer (v4, appendix): filters are k-means centroids of the pixels.

    Pixels are L2-normalized; centroids start from the map resized to L positions and
    follow Lloyd's iterations (assignment to the most similar centroid, mean,
    re-normalization; an empty cluster keeps its centroid). With W_K the centroids,
    T = (softmax over pixels of (X W_K)^T X) W_T. No gradient flows through W_K.

    Attributes:
      tokens: L.
      token_channels: C_T.
      iterations: number of Lloyd iterations.
      position_encoding: see `TokenMap`.
      layers: dtype and normalization; clustering and the softmax are float32.
    """

    tokens: int
    token_channels: int
    iterations: int = LLOYD_ITERATIONS
    position_encoding: bool = False
    layers: VTLayers = VTLayers()

    @nn.compact
    def __call__(
        self, x: jax.Array, tokens: jax.Array | None = None, *, train: bool
    ) -> jax.Array:
        """Maps (batch, H, W, C) to tokens (batch, L, C_T); earlier tokens are unused.

        Source: v4, appendix, clustering-based tokenizer.
        """
        chex.assert_rank(x, 4)
        dtype = self.layers.dtype
        batch, height, width, channels = x.shape
        start = resize(x.astype(jnp.float32), *grid(self.tokens))
        x = x.reshape(batch, height * width, channels)
        centroids = self._cluster(
            jax.lax.stop_gradient(x.astype(jnp.float32)),
            jax.lax.stop_gradient(start.reshape(batch, self.tokens, channels)),
        )
        x = x.astype(dtype)
        logits = jnp.einsum("blc,bpc->blp", centroids.astype(dtype), x)
        attention = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
        maps = attention.reshape(batch, self.tokens, height, width)
        self.sow("intermediates", "coefficients", maps)
        pooled = jnp.einsum("blp,bpc->blc", attention.astype(dtype), x)
        token_map = TokenMap(
            self.token_channels, self.position_encoding, self.layers, name="token"
        )
        return token_map(pooled, maps, train=train)

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

    It has no attention map, so nothing is sown and no position encoding is possible.

    Attributes:
      tokens: L, laid out as the most square grid (16: 4 x 4).
      token_channels: C_T.
      layers: dtype and normalization.
    """

    tokens: int
    token_channels: int
    layers: VTLayers = VTLayers()

    @nn.compact
    def __call__(
        self, x: jax.Array, tokens: jax.Array | None = None, *, train: bool
    ) -> jax.Array:
        """Maps (batch, H, W, C) to tokens (batch, L, C_T); earlier tokens are unused.

        Source: v4, appendix, pooling-based tokenizer.
        """
        chex.assert_rank(x, 4)
        pooled = resize(x.astype(self.layers.dtype), *grid(self.tokens))
        pooled = pooled.reshape(x.shape[0], self.tokens, x.shape[-1])
        token_map = TokenMap(self.token_channels, False, self.layers, name="token")
        return token_map(pooled, None, train=train)
