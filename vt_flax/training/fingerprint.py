"""Checksums of a state's arrays, which checkpoint files lack."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Fingerprint = dict[str, int]


def fingerprint(state: Any) -> Fingerprint:
    """Returns a checksum of each array by its path, computed where the arrays are.

    The sum of an array's 32-bit words, each times an odd weight, modulo 2^32: a change
    of any single word changes it.
    """
    paths, arrays = _flat(state)
    sums = jax.device_get(_checksums(arrays))
    return dict(zip(paths, map(int, sums), strict=True))


def host_fingerprint(state: Any) -> Fingerprint:
    """Returns `fingerprint`, computed with NumPy and without compiling."""

    def checksum(array: np.ndarray) -> int:
        unsigned = np.dtype(f"uint{8 * array.dtype.itemsize}")
        words = np.ascontiguousarray(array).view(unsigned).astype(np.uint32).ravel()
        weights = 2 * np.arange(words.size, dtype=np.uint32) + np.uint32(1)
        return int(np.sum(words * weights, dtype=np.uint32))

    paths, arrays = _flat(state)
    return dict(zip(paths, map(checksum, map(np.asarray, arrays)), strict=True))


def changed_arrays(now: Fingerprint, saved: Fingerprint) -> str:
    """Returns an error about the arrays that differ; empty if none does."""
    changed = sorted(path for path in now if now[path] != saved.get(path))
    return f"the content of {', '.join(changed[:3])} has changed" if changed else ""


def _flat(state: Any) -> tuple[list[str], list[Any]]:
    flat = jax.tree_util.tree_flatten_with_path(state)[0]
    return [jax.tree_util.keystr(path) for path, _ in flat], [x for _, x in flat]


@jax.jit
def _checksums(arrays: list[jax.Array]) -> list[jax.Array]:
    def checksum(array: jax.Array) -> jax.Array:
        unsigned = f"uint{8 * array.dtype.itemsize}"
        words = jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)
        index = jnp.arange(words.size, dtype=jnp.uint32).reshape(words.shape)
        return jnp.sum(words * (2 * index + 1), dtype=jnp.uint32)

    return [checksum(array) for array in arrays]
