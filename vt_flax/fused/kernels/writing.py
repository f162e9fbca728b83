"""Tokens written back to a map, as TPU kernels: one pass over the map, and one back.

The logits and the softmax over the tokens never leave the chip. Arguments are those of
`fused.pixel_attention.write_back`.
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


def forward(arrays: Arrays, *, blocks: int, interpret: bool = False) -> Arrays:
    """Returns `out` and, if there is an `origin`, `sums`.

    Arrays: `x`, `keys`, `values`; `affine`, `shortcut` and `origin` may be missing.
    """
    arrays = dict(arrays)
    x = arrays.pop("x")
    features = arrays["values"].shape[2]
    sums = [((2, features), jnp.float32)] if "origin" in arrays else []
    (out,), found, _ = call(
        functools.partial(_forward, blocks),
        "write_back",
        (x,),
        arrays,
        new_maps=[(x.shape[1], features)],
        new_rows=sums,
        **_work(x, arrays, blocks, 1, 1, 1),
        interpret=interpret,
    )
    return {"out": out, **({"sums": found[0]} if sums else {})}


def backward(
    arrays: Arrays, cotangents: Arrays, *, blocks: int, interpret: bool = False
) -> Arrays:
    """Returns cotangents of all arrays but the origin.

    Those of keys, values and affine are each example's, float32; that of the shortcut
    is the sum over the batch. `cotangents` are those of what `forward` returns.
    """
    arrays = dict(arrays)
    x = arrays.pop("x")
    names = [name for name in ("keys", "values", "affine") if name in arrays]
    totals = [arrays["shortcut"].shape[1:]] if "shortcut" in arrays else []
    sums = {"dsums": cotangents["sums"]} if "sums" in cotangents else {}
    (dx,), found, total = call(
        functools.partial(_backward, blocks),
        "write_back_backward",
        (x, cotangents["out"]),
        arrays | sums,
        new_maps=[x.shape[1:]],
        new_rows=[(arrays[name].shape[1:], jnp.float32) for name in names],
        totals=totals,
        **_work(x, arrays, blocks, 3, 3 if sums else 2, 3 if sums else 2),
        interpret=interpret,
    )
    found = {"x": dx, **dict(zip(names, found, strict=True))}
    if totals:
        found["shortcut"] = total[0][None]
    return found


def _work(
    x: jax.Array, arrays: Arrays, blocks: int, keys: int, values: int, shortcuts: int
) -> dict[str, Any]:
    """What is done, with as many products of each kind."""
    batch, pixels, channels = x.shape
    features = arrays["values"].shape[2]
    rows = blocks * arrays["keys"].shape[1]
    macs = rows * (keys * channels + values * features)
    if "shortcut" in arrays:
        macs += shortcuts * channels * features
    return {
        "macs": batch * pixels * macs,
        "exponentials": batch * pixels * rows,
    }


def _weights(x: jax.Array, keys: jax.Array, tokens: int) -> jax.Array:
    """The softmax over the L tokens of each head, (heads, L, pixels) float32."""
    logits = product(keys, x, COLUMNS, COLUMNS)
    logits = logits.reshape(-1, tokens, x.shape[0])
    powers = jnp.exp(logits - jnp.max(logits, axis=1, keepdims=True))
    return powers / jnp.sum(powers, axis=1, keepdims=True)


def _flat(weights: jax.Array, dtype: Any) -> jax.Array:
    return weights.reshape(-1, weights.shape[2]).astype(dtype)


def _out(x, weights, values, shortcut):
    """The sum that is written, float32, from the softmax and the spread values."""
    written = product(_flat(weights, x.dtype), values, ROWS, ROWS)
    if shortcut is None:
        return written + x.astype(jnp.float32)
    return written + product(x, shortcut, COLUMNS, ROWS)


def _forward(blocks, x, keys, values, affine=None, shortcut=None, origin=None):
    x = normalised(x, affine)
    weights = _weights(x, expand(keys, blocks), values.shape[0])
    out = _out(x, weights, expand(values, weights.shape[0]), shortcut)
    if origin is None:
        return (out,), (), ()
    centred = out - origin
    return (out,), (pixel_sums(centred, jnp.square(centred)),), ()


def _backward(
    blocks,
    raw,
    dout,
    keys,
    values,
    affine=None,
    shortcut=None,
    origin=None,
    dsums=None,
):
    x = normalised(raw, affine)
    keys = expand(keys, blocks)
    weights = _weights(x, keys, values.shape[0])
    heads = weights.shape[0]
    values = expand(values, heads)
    if dsums is not None:
        # What is written is made again, which is cheaper than to bring it.
        centred = _out(x, weights, values, shortcut) - origin
        dout = dout.astype(jnp.float32) + dsums[:1] + 2.0 * dsums[1:] * centred
        dout = dout.astype(x.dtype)
    through = product(values, dout, COLUMNS, COLUMNS).reshape(weights.shape)
    held = jnp.sum(weights * through, axis=1, keepdims=True)
    dlogits = _flat(weights * (through - held), x.dtype)
    dvalues = contract(product(_flat(weights, x.dtype), dout, COLUMNS, ROWS), heads)
    dkeys = contract(product(dlogits, x, COLUMNS, ROWS), blocks)
    dx = product(dlogits, keys, ROWS, ROWS)
    shares = ()
    if shortcut is None:
        dx += dout.astype(jnp.float32)
    else:
        dx += product(dout, shortcut, COLUMNS, COLUMNS)
        shares = (product(x, dout, ROWS, ROWS),)
    if affine is None:
        return (dx,), (dkeys, dvalues), shares
    daffine = pixel_sums(dx * raw.astype(jnp.float32), dx)
    return (dx * affine[:1],), (dkeys, dvalues, daffine), shares
