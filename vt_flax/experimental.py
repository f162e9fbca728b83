"""The only module that imports from `jax.experimental`."""

import importlib
import types
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jax.experimental import mesh_utils, pallas, topologies
    from jax.experimental.pallas import tpu as pallas_tpu

__all__ = [
    "mesh_utils",
    "pallas",
    "pallas_tpu",
    "tensorflow_bridge",
    "topologies",
]


def __getattr__(name: str) -> types.ModuleType:
    """Imports a module when it is first used: Pallas takes a third of a second."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"jax.experimental.{name.replace('_tpu', '.tpu')}")


def tensorflow_bridge() -> types.ModuleType:
    """Returns `jax.experimental.jax2tf`, which imports TensorFlow."""
    from jax.experimental import jax2tf

    return jax2tf
