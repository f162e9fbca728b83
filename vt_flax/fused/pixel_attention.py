"""Attention between pixels and tokens in one pass over the pixels, by TPU kernels.

`pool` and `write_back` compute what those of `folded` do, forward and back, without
attention maps in HBM. Where no kernel is used, they are those (the XLA fallback).
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vt_flax.fused import folded
from vt_flax.fused.platforms import Arrays, by_platform, kernels_apply

# Bytes of float32 that a kernel holds of one example at once.
MAX_MAP_BYTES = 4 * 2**20
LANES, SUBLANES = 128, 8


def pool(
    x: jax.Array, filters: jax.Array, blocks: int, *, attention: bool = False
) -> tuple[jax.Array, jax.Array | None]:
    """Pools pixels: see `folded.pool`."""
    if not (kernels_apply() and _fits(x, filters.shape[1] * blocks)):
        return folded.pool(x, filters, blocks, attention=attention)
    # Imported here, for only TPUs need it.
    from vt_flax.fused.kernels import pooling

    def by_xla(arrays: Arrays) -> Arrays:
        pooled, maps = folded.pool(**arrays, blocks=blocks, attention=attention)
        return {"pooled": pooled} | ({} if maps is None else {"attention": maps})

    compute = _with_kernels(
        by_xla,
        functools.partial(pooling.forward, blocks=blocks, attention=attention),
        functools.partial(pooling.backward, blocks=blocks),
    )
    results = compute({"x": x, "filters": filters})
    return results["pooled"], results.get("attention")


def write_back(
    x: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    blocks: int,
    shortcut: jax.Array | None = None,
) -> jax.Array:
    """Adds tokens to pixels: see `folded.write_back`."""
    tokens, features = values.shape[1:]
    fits = _fits(x, keys.shape[1] * blocks, features) and tokens % SUBLANES == 0
    if not (kernels_apply() and fits):
        return folded.write_back(x, keys, values, blocks, shortcut)
    from vt_flax.fused.kernels import writing

    def by_xla(arrays: Arrays) -> Arrays:
        return {"out": folded.write_back(**arrays, blocks=blocks)}

    compute = _with_kernels(
        by_xla,
        functools.partial(writing.forward, blocks=blocks),
        functools.partial(writing.backward, blocks=blocks),
    )
    arrays = {"x": x, "keys": keys, "values": values}
    if shortcut is not None:
        arrays["shortcut"] = shortcut
    return compute(arrays)["out"]


def _fits(x: jax.Array, rows: int, features: int = LANES) -> bool:
    pixels, channels = x.shape[1:]
    widest = max(channels, features, rows)
    return (
        channels % LANES == 0
        and features % LANES == 0
        and rows % SUBLANES == 0
        and 4 * pixels * widest <= MAX_MAP_BYTES
    )


def _with_kernels(
    by_xla: Callable[[Arrays], Arrays],
    forward: Callable[[Arrays], Arrays],
    backward: Callable[[Arrays, Arrays], Arrays],
) -> Callable[[Arrays], Arrays]:
    """Returns `by_xla` with kernels for its forward and its backward pass on TPUs."""

    def backward_by_xla(arrays: Arrays, cotangents: Arrays) -> Arrays:
        return jax.vjp(by_xla, arrays)[1](cotangents)[0]

    @jax.custom_vjp
    def compute(arrays: Arrays) -> Arrays:
        return by_platform(forward, by_xla, arrays)

    def compute_forward(arrays: Arrays) -> tuple[Arrays, Arrays]:
        return compute(arrays), arrays

    def compute_backward(arrays: Arrays, cotangents: Arrays) -> tuple[Arrays]:
        finish = functools.partial(_like, arrays)
        gradients = by_platform(
            backward, backward_by_xla, arrays, cotangents, finish=finish
        )
        return (gradients,)

    compute.defvjp(compute_forward, compute_backward)
    return compute


def _like(arrays: Arrays, cotangents: Arrays) -> Arrays:
    """Brings the cotangents of a kernel to the shapes and types of `arrays`.

    A kernel gives those of arrays that all examples share by example or by device.
    """
    result = {}
    for name, array in cotangents.items():
        if arrays[name].shape[0] == 1:
            array = jnp.sum(array, axis=0, keepdims=True)
        result[name] = array.astype(arrays[name].dtype)
    return result
