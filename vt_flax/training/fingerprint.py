"""Checksums of a state's arrays: TensorStore reads a flipped byte without an error."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Fingerprint = dict[str, int]


def fingerprint(state: Any) -> Fingerprint:
    """Returns a checksum of each array by its path, computed where the arrays are.

    The sum of an array's words, each times an odd weight, modulo 2^32: a change of any
    single word changes it.
    """
    paths, arrays = _flat(state)
    sums = jax.device_get(_checksums(arrays))
    return dict(zip(paths, map(int, sums), strict=True))


def host_fingerprint(state: Any) -> Fingerprint:
    """Returns `fingerprint` of NumPy arrays, without compiling."""
    paths, arrays = _flat(state)
    return {p: int(_checksum(x, np)) for p, x in zip(paths, arrays, strict=True)}


def _flat(state: Any) -> tuple[list[str], list[Any]]:
    flat = jax.tree_util.tree_leaves_with_path(state)
    return [jax.tree_util.keystr(path) for path, _ in flat], [x for _, x in flat]


def _checksum(array: Any, xp: Any) -> Any:
    words = array.view(f"uint{8 * array.dtype.itemsize}").astype(np.uint32)
    weights = 2 * xp.arange(array.size, dtype=np.uint32).reshape(array.shape) + 1
    return xp.sum(words * weights, dtype=np.uint32)


@jax.jit
def _checksums(arrays: list[jax.Array]) -> list[jax.Array]:
    return [_checksum(array, jnp) for array in arrays]
