"""The one place that imports what JAX calls experimental, for those who need it."""

from jax.experimental import pallas, topologies
from jax.experimental.pallas import tpu as pallas_tpu

__all__ = ["pallas", "pallas_tpu", "topologies"]
