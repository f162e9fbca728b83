"""Loads an exported program: pip install jax flatbuffers."""

import json
import zipfile

import jax
from jax import export


def load(path):
    """Returns the program, a function of NumPy arrays, and what is told of it."""
    with zipfile.ZipFile(path) as file:
        program = export.deserialize(bytearray(file.read("program.stablehlo")))
        return jax.jit(program.call), json.loads(file.read("metadata.json"))
