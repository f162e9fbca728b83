"""Pixels pooled by filters, as TPU kernels: one pass over the map, and one back.

The logits and the softmax over the pixels stay on the chip. Arguments are those of
`fused.folded.pool`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from vt_flax.fused.kernels.blocks import COLUMNS, ROWS, contract, expand, product
from vt_flax.fused.kernels.calls import call
from vt_flax.fused.platforms import Arrays


def forward(
    arrays: Arrays, *, blocks: int, attention: bool, interpret: bool = False
) -> Arrays:
    """Returns `pooled` and, if asked for, `attention`; arrays: `x` and `filters`."""
    arrays = dict(arrays)
    x = arrays.pop("x")
    shapes = _shapes(x, arrays["filters"], blocks)
    names = ("pooled", "attention")[: 1 + attention]
    _, found, _ = call(
        functools.partial(_forward, blocks, attention),
        "pool",
        (x,),
        arrays,
        new_rows=[(shapes[name], x.dtype) for name in names],
        macs=2 * x.size * shapes["attention"][0],
        interpret=interpret,
    )
    return dict(zip(names, found, strict=True))


def backward(
    arrays: Arrays, cotangents: Arrays, *, blocks: int, interpret: bool = False
) -> Arrays:
    """Returns cotangents of all arrays; that of filters by example, in float32.

    `cotangents` are those of the results of `forward`.
    """
    arrays = dict(arrays)
    x = arrays.pop("x")
    shapes = _shapes(x, arrays["filters"], blocks)
    cotangents = {f"d{name}": value for name, value in cotangents.items()}
    (dx,), (dfilters,), _ = call(
        functools.partial(_backward, blocks),
        "pool_backward",
        (x,),
        arrays | cotangents,
        new_maps=[x.shape[1:]],
        new_rows=[(arrays["filters"].shape[1:], jnp.float32)],
        macs=5 * x.size * shapes["attention"][0],
        interpret=interpret,
    )
    return {"x": dx, "filters": dfilters}


def _shapes(x: jax.Array, filters: jax.Array, blocks: int) -> dict[str, Any]:
    rows, channels = filters.shape[1:]
    return {"pooled": (rows, channels), "attention": (blocks * rows, x.shape[1])}


def _attention(x: jax.Array, filters: jax.Array) -> jax.Array:
    logits = product(filters, x, COLUMNS, COLUMNS)
    powers = jnp.exp(logits - jnp.max(logits, axis=1, keepdims=True))
    return powers / jnp.sum(powers, axis=1, keepdims=True)


def _forward(blocks, attention, x, filters):
    found = _attention(x, expand(filters, blocks)).astype(x.dtype)
    pooled = contract(product(found, x, COLUMNS, ROWS), blocks)
    return (), (pooled, found)[: 1 + attention], ()


def _backward(blocks, x, filters, dpooled, dattention=None):
    filters, dpooled = expand(filters, blocks), expand(dpooled, blocks)
    attention = _attention(x, filters)
    gradient = product(dpooled, x, COLUMNS, COLUMNS)
    if dattention is not None:
        gradient += dattention.astype(jnp.float32)
    # Of the softmax.
    mean = jnp.sum(attention * gradient, axis=1, keepdims=True)
    dlogits = (attention * (gradient - mean)).astype(x.dtype)
    dx = product(dlogits, filters, ROWS, ROWS)
    dx += product(attention.astype(x.dtype), dpooled, ROWS, ROWS)
    dfilters = contract(product(dlogits, x, COLUMNS, ROWS), blocks)
    return (dx,), (dfilters,), ()
