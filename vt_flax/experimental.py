"""The one place that imports what JAX calls experimental, for those who need it."""

from jax.experimental import mesh_utils, pallas, topologies
from jax.experimental.pallas import tpu as pallas_tpu

__all__ = ["mesh_utils", "pallas", "pallas_tpu", "topologies"]
