"""What the two self-attentions of SAN share (Zhao et al., 2020)."""

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from vt_flax.fused.moment_norm import Affine
from vt_flax.models.comparison.local_attention import check_formulation
from vt_flax.models.comparison.windows import Window
from vt_flax.nn.norm import Normalization

# Channels that share a weight.
SHARE = 8


class Kernel(nn.Module):
    """A linear map's parameters, where it is applied offset by offset.

    Attributes:
      inside: channels in.
      outside: channels out.
    """

    inside: int
    outside: int

    @nn.compact
    def __call__(self) -> jax.Array:
        """Returns the kernel (inside, outside), float32."""
        shape = (self.inside, self.outside)
        return self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)


def moments(x: jax.Array, origin: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Means (batch, channels) over the pixels of x - origin and of its square."""
    centred = x.astype(jnp.float32) - origin
    return centred.mean((1, 2)), jnp.square(centred).mean((1, 2))


def rectified(x: jax.Array, norm: Affine, kernel: jax.Array, dtype: Any) -> jax.Array:
    """A layer of the map on one offset: normalisation, ReLU, linear map; float32."""
    x = nn.relu(norm(x)).astype(dtype) @ kernel.astype(dtype)
    return x.astype(jnp.float32)


class SANAttention(nn.Module):
    """What pairwise and patchwise attention share: query, key and value maps.

    Both make the weights by a map of two layers, batch normalisation and ReLU in front
    of each, share a weight among 8 channels, and mirror the maps at the border.

    Attributes:
      size: side of the window in pixels, odd.
      norm: batch normalisation.
      formulation: see `models.comparison.local_attention`.
      dtype: type of the computation; the softmax is float32.
    """

    size: int = 7
    norm: Normalization = Normalization()
    formulation: str = "scan"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps (batch, H, W, C) to (batch, H, W, C / 4).

        Query and key have C / 16 channels.

        Source: Zhao et al. (2020), sections 3 and 4, and the authors' code for biases,
        normalisation and borders.
        """
        chex.assert_rank(x, 4)
        check_formulation(self.formulation)
        channels, x = x.shape[-1], x.astype(self.dtype)
        query, key, value = (
            nn.Dense(max(1, channels // part), dtype=self.dtype, name=name)(x)
            for name, part in (("query", 16), ("key", 16), ("value", 4))
        )
        return self.weigh(query, key, value, Window(self.size, 1, "reflect"), train)

    @nn.nowrap
    def weigh(
        self,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        window: Window,
        train: bool,
    ) -> jax.Array:
        """Returns the weighted sums of values; called by a compact method."""
        raise NotImplementedError

    def layer(self, x: jax.Array, name: str, kernel: jax.Array, train: bool):
        """A layer of the map on an array that is held whole."""
        x = nn.relu(self.norm.layer(name)(x, train=train))
        return x.astype(self.dtype) @ kernel.astype(self.dtype)
