"""The one place that imports what JAX calls experimental, for those who need it."""

import types

from jax.experimental import mesh_utils, pallas, topologies
from jax.experimental.pallas import tpu as pallas_tpu

__all__ = [
    "mesh_utils",
    "pallas",
    "pallas_tpu",
    "tensorflow_bridge",
    "topologies",
]


def tensorflow_bridge() -> types.ModuleType:
    """Returns `jax.experimental.jax2tf`, which imports TensorFlow: late, for a save."""
    from jax.experimental import jax2tf

    return jax2tf
