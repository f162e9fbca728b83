"""Color jitter of segmentation: brightness, contrast, saturation and hue.

Unlike Pillow (and `operations`), levels are not rounded between operations.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

# Weights of red, green and blue in a gray level (ITU-R 601, Pillow's mode L).
GRAY = (0.299, 0.587, 0.114)

# In order of their application, which torchvision shuffles.
FACTORS = ("brightness", "contrast", "saturation")


class Jitter(NamedTuple):
    """Random draws of each example, float32 (batch,).

    Attributes:
      brightness: factor; 1 changes nothing.
      contrast: factor.
      saturation: factor.
      hue: shift by a share of the color circle, -1/2 to 1/2.
    """

    brightness: jax.Array
    contrast: jax.Array
    saturation: jax.Array
    hue: jax.Array


def draw_jitter(keys: jax.Array, config: ConfigDict) -> Jitter:
    """Draws uniformly: factors from 1 - v to 1 + v, at least 0; hue from -v to v.

    Args:
      keys: (batch, 4) keys, one for each field of `Jitter`.
      config: the section `segmentation`.
    """
    ranges = [(max(0.0, 1 - config[name]), 1 + config[name]) for name in FACTORS]
    low, high = jnp.asarray([*ranges, (-config.hue, config.hue)]).T
    uniform = jax.vmap(jax.vmap(jax.random.uniform))(keys)
    return Jitter(*jnp.unstack(low + (high - low) * uniform, axis=1))


def apply_jitter(
    images: jax.Array, inside: jax.Array, jitter: Jitter, config: ConfigDict
) -> jax.Array:
    """Applies ImageEnhance's Brightness, Contrast and Color, then shifts the hue.

    Args:
      images: levels from 0 to 255, float32, (batch, H, W, 3).
      inside: bool, (batch, H, W): pixels of the example, whose mean contrast uses.
      jitter: random draws.
      config: the section `segmentation`; operations whose range is 0 are left out.
    """
    # Channels apart: accelerators pad the last axis, and three become 128.
    levels = jnp.moveaxis(images, -1, 0)
    if config.brightness:
        levels = _blend(0.0, levels, jitter.brightness)
    if config.contrast:
        count = jnp.maximum(inside.sum((1, 2)), 1)
        mean = jnp.where(inside, _gray(levels), 0).sum((1, 2)) / count
        # Rounded, as in Pillow.
        levels = _blend(jnp.floor(mean + 0.5)[:, None, None], levels, jitter.contrast)
    if config.saturation:
        levels = _blend(_gray(levels), levels, jitter.saturation)
    if config.hue:
        levels = jnp.stack(_turn_hue(*levels, jitter.hue[:, None, None]))
    return jnp.moveaxis(levels, 0, -1)


def _blend(start: jax.Array | float, levels: jax.Array, factor: jax.Array) -> jax.Array:
    return jnp.clip(start + factor[:, None, None] * (levels - start), 0, 255)


def _gray(levels: jax.Array) -> jax.Array:
    return sum(weight * level for weight, level in zip(GRAY, levels, strict=True))


def _turn_hue(
    red: jax.Array, green: jax.Array, blue: jax.Array, turn: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Adds `turn` to the hue in HSV; value and saturation do not change."""
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    safe = jnp.where(chroma > 0, chroma, 1)
    # In sixths of the circle, from red. No level is compared with `value`, which a
    # compiler may round differently.
    hue = jnp.select(
        [(red >= green) & (red >= blue), green >= blue],
        [(green - blue) / safe, (blue - red) / safe + 2],
        (red - green) / safe + 4,
    )
    hue = hue + 6 * turn

    def channel(opposite: int) -> jax.Array:
        """A channel is full within a sixth of its hue, and empty opposite to it."""
        away = jnp.mod(hue + opposite, 6)
        return value - chroma * jnp.clip(jnp.minimum(away, 4 - away), 0, 1)

    return channel(5), channel(3), channel(1)
