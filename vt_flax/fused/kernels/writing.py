"""Tokens written back to a map, as TPU kernels: one pass over the map, and one back.

The logits and the softmax over the tokens stay on the chip. Arguments are those of
`fused.pixel_attention.write_back`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from vt_flax.fused.kernels.blocks import COLUMNS, ROWS, contract, expand, product
from vt_flax.fused.kernels.calls import call
from vt_flax.fused.platforms import Arrays


def forward(arrays: Arrays, *, blocks: int, interpret: bool = False) -> Arrays:
    """Returns `out`; arrays: `x`, `keys`, `values` and, where C changes, `shortcut`."""
    arrays = dict(arrays)
    x = arrays.pop("x")
    (out,), _, _ = call(
        functools.partial(_forward, blocks),
        "write_back",
        (x,),
        arrays,
        new_maps=[(x.shape[1], arrays["values"].shape[2])],
        macs=_macs(x, arrays, blocks, keys=1, values=1, shortcuts=1),
        interpret=interpret,
    )
    return {"out": out}


def backward(
    arrays: Arrays, cotangents: Arrays, *, blocks: int, interpret: bool = False
) -> Arrays:
    """Returns cotangents of all arrays from that of `out`.

    Those of keys and values are by example, in float32; that of the shortcut is the sum
    over the batch.
    """
    arrays = dict(arrays)
    x = arrays.pop("x")
    totals = [arrays["shortcut"].shape[1:]] if "shortcut" in arrays else []
    (dx,), (dkeys, dvalues), total = call(
        functools.partial(_backward, blocks),
        "write_back_backward",
        (x, cotangents["out"]),
        arrays,
        new_maps=[x.shape[1:]],
        new_rows=[(arrays[name].shape[1:], jnp.float32) for name in ("keys", "values")],
        totals=totals,
        macs=_macs(x, arrays, blocks, keys=3, values=2, shortcuts=2),
        interpret=interpret,
    )
    found = {"x": dx, "keys": dkeys, "values": dvalues}
    if totals:
        found["shortcut"] = total[0][None]
    return found


def _macs(
    x: jax.Array, arrays: Arrays, blocks: int, keys: int, values: int, shortcuts: int
) -> int:
    """Returns the multiply-adds of these numbers of products of each kind."""
    batch, pixels, channels = x.shape
    features = arrays["values"].shape[2]
    rows = blocks * arrays["keys"].shape[1]
    macs = rows * (keys * channels + values * features)
    if "shortcut" in arrays:
        macs += shortcuts * channels * features
    return batch * pixels * macs


def _attention(x: jax.Array, keys: jax.Array, tokens: int) -> jax.Array:
    """The softmax over the L tokens of each head, (heads, L, pixels) float32."""
    logits = product(keys, x, COLUMNS, COLUMNS)
    logits = logits.reshape(-1, tokens, x.shape[0])
    powers = jnp.exp(logits - jnp.max(logits, axis=1, keepdims=True))
    return powers / jnp.sum(powers, axis=1, keepdims=True)


def _flat(attention: jax.Array, dtype: Any) -> jax.Array:
    return attention.reshape(-1, attention.shape[2]).astype(dtype)


def _forward(blocks, x, keys, values, shortcut=None):
    attention = _attention(x, expand(keys, blocks), values.shape[0])
    values = expand(values, attention.shape[0])
    out = product(_flat(attention, x.dtype), values, ROWS, ROWS)
    if shortcut is None:
        return (out + x.astype(jnp.float32),), (), ()
    return (out + product(x, shortcut, COLUMNS, ROWS),), (), ()


def _backward(blocks, x, dout, keys, values, shortcut=None):
    keys = expand(keys, blocks)
    attention = _attention(x, keys, values.shape[0])
    heads = attention.shape[0]
    values = expand(values, heads)
    gradient = product(values, dout, COLUMNS, COLUMNS).reshape(attention.shape)
    # Of the softmax.
    mean = jnp.sum(attention * gradient, axis=1, keepdims=True)
    dlogits = _flat(attention * (gradient - mean), x.dtype)
    dvalues = contract(product(_flat(attention, x.dtype), dout, COLUMNS, ROWS), heads)
    dkeys = contract(product(dlogits, x, COLUMNS, ROWS), blocks)
    dx = product(dlogits, keys, ROWS, ROWS)
    if shortcut is None:
        return (dx + dout.astype(jnp.float32),), (dkeys, dvalues), ()
    dx += product(dout, shortcut, COLUMNS, COLUMNS)
    return (dx,), (dkeys, dvalues), (product(x, dout, ROWS, ROWS),)
