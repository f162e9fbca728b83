"""Maps whose normalisation is left to those who read them."""

from typing import Any

import flax
import jax

from vt_flax.fused.pixel_attention import normalised


@flax.struct.dataclass
class LazyMap:
    """A map that is to be taken with a scale and a bias.

    To normalise a map is to read and write it once more; who reads it anyway can do it
    then.

    Attributes:
      pixels: (batch, H, W, C).
      affine: float32 (batch, 2, C) or (1, 2, C), scale and bias; None for none.
    """

    pixels: jax.Array
    affine: jax.Array | None = None

    @classmethod
    def of(cls, x: "jax.Array | LazyMap") -> "LazyMap":
        """Returns a lazy map of either."""
        return x if isinstance(x, cls) else cls(x)

    def array(self) -> jax.Array:
        """Returns the map as it is meant, (batch, H, W, C)."""
        return self.flat_array(self.pixels.dtype).reshape(self.pixels.shape)

    def flat(self, dtype: Any) -> jax.Array:
        """Returns the pixels as they are, (batch, H * W, C) of a type."""
        batch, height, width, channels = self.pixels.shape
        return self.pixels.astype(dtype).reshape(batch, height * width, channels)

    def flat_array(self, dtype: Any) -> jax.Array:
        """Returns the map as it is meant, (batch, H * W, C) of a type."""
        return normalised(self.flat(dtype), self.affine)
