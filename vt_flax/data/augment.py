"""What is done to images on the device, inside the step."""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict


def normalise(images: jax.Array, config: ConfigDict) -> jax.Array:
    """Brings uint8 images (batch, H, W, 3) to float32 of zero mean and unit deviation.

    Args:
      images: as the host sends them.
      config: the section `data`: `mean` and `std` per channel, of values 0 to 1.
    """
    mean = jnp.asarray(config.mean, jnp.float32)
    std = jnp.asarray(config.std, jnp.float32)
    return (images.astype(jnp.float32) / 255.0 - mean) / std


def augment(images: jax.Array, config: ConfigDict, key: jax.Array) -> jax.Array:
    """Augments and normalises a training batch.

    Args:
      images: uint8, (batch, H, W, 3).
      config: the section `data`; `flip` mirrors half of the images.
      key: one key for the batch; every example gets its own from it.

    Returns:
      float32, (batch, H, W, 3).
    """
    if config.flip:
        keys = jax.random.split(key, images.shape[0])
        flipped = jax.vmap(jax.random.bernoulli)(keys)
        images = jnp.where(flipped[:, None, None, None], images[:, :, ::-1], images)
    return normalise(images, config)
