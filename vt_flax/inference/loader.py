"""Loads an exported program: pip install jax flatbuffers."""

import json
import zipfile

import jax
from jax import export


def load(path):
    """Returns the program, a function of NumPy arrays, and its metadata."""
    with zipfile.ZipFile(path) as file:
        metadata = json.loads(file.read("metadata.json"))
        content = bytearray(file.read("program.stablehlo"))
    try:
        return jax.jit(export.deserialize(content).call), metadata
    except (ValueError, NotImplementedError) as error:
        raise ValueError(
            f"{path}: JAX {jax.__version__} does not read what JAX {metadata['jax']} "
            "exported: export the network again, or install that JAX"
        ) from error
