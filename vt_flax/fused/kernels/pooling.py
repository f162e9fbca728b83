"""Pixels pooled by filters, as TPU kernels: one pass over the map, and one back.

The logits and the softmax over the pixels never leave the chip. Arguments are those of
`fused.pixel_attention.pool`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from vt_flax.fused.kernels.blocks import (
    COLUMNS,
    ROWS,
    contract,
    expand,
    normalised,
    pixel_sums,
    product,
)
from vt_flax.fused.kernels.calls import call
from vt_flax.fused.platforms import Arrays


def forward(
    arrays: Arrays, *, blocks: int, weights: bool, interpret: bool = False
) -> Arrays:
    """Returns `pooled` and, if asked for, `weights`; arrays: `x`, `filters`, `affine`.

    `affine` may be missing.
    """
    arrays = dict(arrays)
    x = arrays.pop("x")
    shapes = _shapes(x, arrays["filters"], blocks)
    names = ("pooled", "weights")[: 1 + weights]
    _, found, _ = call(
        functools.partial(_forward, blocks, weights),
        "pool",
        (x,),
        arrays,
        new_rows=[(shapes[name], x.dtype) for name in names],
        **_work(x, shapes, 2),
        interpret=interpret,
    )
    return dict(zip(names, found, strict=True))


def backward(
    arrays: Arrays, cotangents: Arrays, *, blocks: int, interpret: bool = False
) -> Arrays:
    """Returns cotangents of all arrays; of filters and affine each example's, float32.

    `cotangents` are those of what `forward` returns.
    """
    arrays = dict(arrays)
    x = arrays.pop("x")
    shapes = _shapes(x, arrays["filters"], blocks)
    names = [name for name in ("filters", "affine") if name in arrays]
    cotangents = {f"d{name}": value for name, value in cotangents.items()}
    (dx,), found, _ = call(
        functools.partial(_backward, blocks),
        "pool_backward",
        (x,),
        arrays | cotangents,
        new_maps=[x.shape[1:]],
        new_rows=[(arrays[name].shape[1:], jnp.float32) for name in names],
        **_work(x, shapes, 5),
        interpret=interpret,
    )
    return {"x": dx, **dict(zip(names, found, strict=True))}


def _shapes(x: jax.Array, filters: jax.Array, blocks: int) -> dict[str, Any]:
    rows, channels = filters.shape[1:]
    return {"pooled": (rows, channels), "weights": (blocks * rows, x.shape[1])}


def _work(x: jax.Array, shapes: dict[str, Any], products: int) -> dict[str, int]:
    rows, pixels = shapes["weights"]
    exponentials = x.shape[0] * rows * pixels
    return {
        "macs": products * exponentials * x.shape[2],
        "exponentials": exponentials,
    }


def _weights(x: jax.Array, filters: jax.Array) -> jax.Array:
    logits = product(filters, x, COLUMNS, COLUMNS)
    powers = jnp.exp(logits - jnp.max(logits, axis=1, keepdims=True))
    return powers / jnp.sum(powers, axis=1, keepdims=True)


def _forward(blocks, weights, x, filters, affine=None):
    x = normalised(x, affine)
    found = _weights(x, expand(filters, blocks)).astype(x.dtype)
    pooled = contract(product(found, x, COLUMNS, ROWS), blocks)
    return (), (pooled, found)[: 1 + weights], ()


def _backward(blocks, raw, filters, dpooled, affine=None, dweights=None):
    x = normalised(raw, affine)
    filters, dpooled = expand(filters, blocks), expand(dpooled, blocks)
    weights = _weights(x, filters)
    through = product(dpooled, x, COLUMNS, COLUMNS)
    if dweights is not None:
        through += dweights.astype(jnp.float32)
    held = jnp.sum(weights * through, axis=1, keepdims=True)
    dlogits = (weights * (through - held)).astype(x.dtype)
    dx = product(dlogits, filters, ROWS, ROWS)
    dx += product(weights.astype(x.dtype), dpooled, ROWS, ROWS)
    dfilters = contract(product(dlogits, x, COLUMNS, ROWS), blocks)
    if affine is None:
        return (dx,), (dfilters,), ()
    return (
        (dx * affine[:1],),
        (dfilters, pixel_sums(dx * raw.astype(jnp.float32), dx)),
        (),
    )
