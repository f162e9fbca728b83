"""Exponential moving averages of parameters and batch statistics."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict


def update_ema(average: Any, new: Any, step: jax.Array, config: ConfigDict) -> Any:
    """Updates an exponential moving average.

    Args:
      average: a tree of arrays.
      new: a tree of the same structure.
      step: updates made before this one. With `ramp` the decay is at most
        (1 + step) / (10 + step), as TensorFlow's `num_updates` does, so that a short
        run does not keep its initial values.
      config: the section `ema`.
    """
    decay = jnp.float32(config.decay)
    if config.ramp:
        count = step.astype(jnp.float32)
        decay = jnp.minimum(decay, (1 + count) / (10 + count))
    return optax.incremental_update(new, average, 1 - decay)
