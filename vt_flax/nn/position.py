"""Position encoding of tokens by where their coefficients lie (v1)."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from vt_flax.nn.layers import VTLayers, resize


class PositionEncoding(nn.Module):
    """Describes each token's map in C_p = size^2 / 4^reductions numbers (v1, 3.1).

    The map is resized to size x size, halved by stride-2 3 x 3 convolutions, flattened
    and mixed by a learned C_p x C_p map. The convolutions run over the maps of all
    heads, as many channels in as out; a learned 1 x 1 map then brings these to one, as
    in public copies of the appendix's pseudo-code.

    Attributes:
      size: side in pixels to which maps are resized; any image size gives the same
        parameters.
      reductions: number of stride-2 convolutions.
      layers: dtype and normalization.
    """

    size: int = 14
    reductions: int = 1
    layers: VTLayers = VTLayers()

    @nn.compact
    def __call__(self, coefficients: jax.Array, train: bool) -> jax.Array:
        """Encodes coefficient maps.

        Args:
          coefficients: (batch, L, H, W), or (batch, heads, L, H, W).
          train: whether batch statistics are those of this batch.

        Returns:
          (batch, L, C_p).
        """
        chex.assert_rank(coefficients, {4, 5})
        layers = self.layers
        maps = coefficients.astype(layers.dtype)
        by_head = maps.ndim == 5
        maps = jnp.moveaxis(maps, 1, -1) if by_head else maps[..., None]
        batch, tokens, height, width, heads = maps.shape
        # The same convolutions serve every token.
        maps = resize(
            maps.reshape(batch * tokens, height, width, heads), self.size, self.size
        )
        for i in range(self.reductions):
            maps = layers.conv(heads, 3, 2, name=f"reduce{i + 1}")(maps)
        side = maps.shape[1]
        maps = maps.reshape(batch, tokens, side**2, heads)
        if by_head:
            maps = layers.linear(1, name="heads")(maps)
            maps = layers.norm_map(maps, "heads_norm", train=train)
        flat = maps[..., 0]
        mixed = layers.linear(side**2, name="mix")(flat)
        return layers.norm_map(mixed, "mix_norm", train=train)
