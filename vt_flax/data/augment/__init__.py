"""Augmentation of classification batches on the device, inside the step."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from ml_collections import ConfigDict

from vt_flax.data.augment import mixing, policies
from vt_flax.data.augment.mixing import Targets
from vt_flax.data.augment.policies import check_device

__all__ = ["Targets", "augment", "check_device", "normalize"]


def normalize(images: jax.Array, config: ConfigDict) -> jax.Array:
    """Normalizes images to zero mean and unit deviation, float32.

    Args:
      images: levels from 0 to 255, (batch, H, W, 3).
      config: the section `data`: `mean` and `std` per channel, of values 0 to 1.
    """
    mean = jnp.asarray(config.mean, jnp.float32)
    std = jnp.asarray(config.std, jnp.float32)
    return (images.astype(jnp.float32) / 255.0 - mean) / std


def augment(
    images: jax.Array,
    labels: jax.Array,
    config: ConfigDict,
    key: jax.Array,
    sharding: NamedSharding | None = None,
) -> tuple[jax.Array, Targets]:
    """Augments a training batch: mirroring, a policy, normalization, erasing, mixing.

    Args:
      images: uint8, (batch, H, W, 3).
      labels: int32, (batch,).
      config: the section `data`: `flip`, `augment`, `erasing`, `mixup`, `cutmix`.
      key: one key for the batch; each example draws from its own, so that the result
        does not depend on the sharding.
      sharding: of the batch; None for a single device.

    Returns:
      Normalized images, float32 (batch, H, W, 3), and their targets.
    """
    keys = jax.random.split(key, len(images))
    # A key for each purpose: enabling one does not change the draws of another.
    flip, policy, erasing, mixing_key = jnp.unstack(
        jax.vmap(lambda key: jax.random.split(key, 4))(keys), axis=1
    )
    if config.flip:
        flipped = jax.vmap(jax.random.bernoulli)(flip)
        images = jnp.where(flipped[:, None, None, None], images[:, :, ::-1], images)
    images = normalize(policies.apply_policy(images, config, policy, sharding), config)
    if config.erasing:
        images = mixing.erase(images, config.erasing, erasing)
    if config.mixup or config.cutmix:
        return mixing.mix(images, labels, config, mixing_key)
    return images, Targets(labels[:, None], jnp.ones((len(labels), 1)))
