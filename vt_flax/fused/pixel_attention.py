"""Attention between pixels and tokens in one pass over the pixels, by TPU kernels.

`pool` and `write_back` compute what those of `folded` do, forward and back, without
attention maps in HBM. Where no kernel is used, they are those (the XLA fallback).
"""

import functools

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
    arrays = {"x": x, "filters": filters}
    if kernels_apply() and _fits(x, filters.shape[1] * blocks):
        found = _pool(blocks, attention, arrays)
    else:
        found = _pool_by_xla(blocks, attention, arrays)
    return found["pooled"], found.get("attention")


def write_back(
    x: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    blocks: int,
    shortcut: jax.Array | None = None,
    origin: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array | None]:
    """Adds tokens to pixels: see `folded.write_back`.

    With an `origin`, float32 (1, 1, F) and without a gradient, moments of the result
    about it are taken too.

    Returns:
      The pixels, and of each example the sums over the pixels of the result minus the
      origin and of its square, float32 (batch, 2, F), or None.
    """
    arrays = {"x": x, "keys": keys, "values": values}
    if shortcut is not None:
        arrays["shortcut"] = shortcut
    if origin is not None:
        arrays["origin"] = origin
    tokens, features = values.shape[1:]
    fits = _fits(x, keys.shape[1] * blocks, features) and tokens % SUBLANES == 0
    if kernels_apply() and fits:
        found = _write_back(blocks, arrays)
    else:
        found = _write_back_by_xla(blocks, arrays)
    return found["out"], found.get("sums")


def _fits(x: jax.Array, rows: int, features: int = LANES) -> bool:
    pixels, channels = x.shape[1:]
    widest = max(channels, features, rows)
    return (
        channels % LANES == 0
        and features % LANES == 0
        and rows % SUBLANES == 0
        and 4 * pixels * widest <= MAX_MAP_BYTES
    )


# --------------------------------------------------------------------- XLA fallback


def _pool_by_xla(blocks: int, attention: bool, arrays: Arrays) -> Arrays:
    pooled, found = folded.pool(
        arrays["x"], arrays["filters"], blocks, attention=attention
    )
    return {"pooled": pooled} | ({"attention": found} if attention else {})


def _write_back_by_xla(blocks: int, arrays: Arrays) -> Arrays:
    x, keys, values = (arrays[name] for name in ("x", "keys", "values"))
    out = folded.write_back(x, keys, values, blocks, arrays.get("shortcut"))
    if "origin" not in arrays:
        return {"out": out}
    centered = out.astype(jnp.float32) - jax.lax.stop_gradient(arrays["origin"])
    moments = [jnp.sum(m, axis=1) for m in (centered, jnp.square(centered))]
    return {"out": out, "sums": jnp.stack(moments, axis=1)}


# -------------------------------------------------------------------------- kernels


def _with_kernels(forward_by_xla, kernels):
    """Returns a function of static arguments and arrays, whose two passes are kernels.

    Args:
      forward_by_xla: the same function as XLA computes it.
      kernels: returns the forward and the backward kernel for the static arguments.
    """

    def compute(*arguments):
        *static, arrays = arguments
        by_xla = functools.partial(forward_by_xla, *static)
        return by_platform(kernels(*static)[0], by_xla, arrays)

    def forward(*arguments):
        return compute(*arguments), arguments[-1]

    def backward(*arguments):
        *static, arrays, cotangents = arguments

        def by_xla(arrays, cotangents):
            by_xla = functools.partial(forward_by_xla, *static)
            return jax.vjp(by_xla, arrays)[1](cotangents)[0]

        kernel, finish = kernels(*static)[1], functools.partial(_like, arrays)
        return (by_platform(kernel, by_xla, arrays, cotangents, finish=finish),)

    return compute, forward, backward


def _like(arrays: Arrays, found: Arrays) -> Arrays:
    """Brings the cotangents of a kernel to the shapes and types of `arrays`."""
    zero = {"origin": jnp.zeros_like(arrays["origin"])} if "origin" in arrays else {}
    summed = {
        name: jnp.sum(array, axis=0, keepdims=True)
        if arrays[name].shape[0] == 1
        else array
        for name, array in found.items()
    }
    return zero | {
        name: array.astype(arrays[name].dtype) for name, array in summed.items()
    }


def _pool_kernels(blocks: int, attention: bool):
    # Imported here, for only TPUs need it.
    from vt_flax.fused.kernels import pooling

    forward = functools.partial(pooling.forward, blocks=blocks, attention=attention)
    return forward, functools.partial(pooling.backward, blocks=blocks)


def _write_back_kernels(blocks: int):
    from vt_flax.fused.kernels import writing

    return tuple(
        functools.partial(kernel, blocks=blocks)
        for kernel in (writing.forward, writing.backward)
    )


_compute, *_passes = _with_kernels(_pool_by_xla, _pool_kernels)
_pool = jax.custom_vjp(_compute, nondiff_argnums=(0, 1))
_pool.defvjp(*_passes)

_compute, *_passes = _with_kernels(_write_back_by_xla, _write_back_kernels)
_write_back = jax.custom_vjp(_compute, nondiff_argnums=(0,))
_write_back.defvjp(*_passes)
