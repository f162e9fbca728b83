"""Attention between the pixels of a map and a few rows of numbers, in one pass over it.

Tokenizers pool pixels by a softmax over the pixels, projectors write tokens back by a
softmax over the tokens. Here no value, key or query map exists on the pixels: what the
paper multiplies them with is multiplied on the few rows instead, which is the same. A
map that is normalised is normalised as it is read.

On TPUs both are kernels (`fused.kernels`), elsewhere matrix products.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vt_flax.fused.platforms import Arrays, by_platform, kernels_apply

# What a kernel holds of an example on the chip at once, in bytes of float32.
LARGEST_MAP = 4 * 2**20
LANES, SUBLANES = 128, 8
# That a kernel takes at a time.
EXAMPLES = 8


def pool(
    x: jax.Array,
    filters: jax.Array,
    blocks: int,
    *,
    affine: jax.Array | None = None,
    weights: bool = False,
) -> tuple[jax.Array, jax.Array | None]:
    """Pools pixels by the softmax, over the pixels, of their products with filters.

    The C channels are `blocks` blocks, each with filters of its own. With x_g and F_g
    the columns of block g, A_g = softmax over pixels of F_g x_g^T, and A_g x_g is
    returned.

    Args:
      x: (batch, pixels, C).
      filters: (batch, M, C), or (1, M, C) for the same in all examples; of the type of
        `x`.
      blocks: how many blocks the channels are.
      affine: float32 (batch, 2, C) or (1, 2, C), a scale and a bias that `x` is to be
        taken with.
      weights: whether A is wanted too.

    Returns:
      The pooled pixels, (batch, M, C), and the weights A, (batch, blocks * M, pixels),
      or None; of the type of `x`. The softmax is float32.
    """
    arrays = _present(x=x, filters=filters, affine=affine)
    if kernels_apply() and _fits(x, filters.shape[1] * blocks):
        found = _pool(blocks, weights, arrays)
    else:
        found = _pool_by_products(blocks, weights, arrays)
    return found["pooled"], found.get("weights")


def write_back(
    x: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    blocks: int,
    *,
    affine: jax.Array | None = None,
    shortcut: jax.Array | None = None,
    origin: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array | None]:
    """Adds tokens to a map, by the softmax over the tokens of logits at a pixel.

    The heads are spread over the blocks of the C channels: with x_g the columns of
    block g and K_h the keys of a head in it, W_h = softmax over tokens of K_h x_g^T,
    and W_h^T V_h is added to x S, the heads side by side.

    Args:
      x: (batch, pixels, C).
      keys: (batch, M, C) of the type of `x`: of the M rows of a block each L, one after
        the other, are a head's.
      values: (batch, L, F) of the type of `x`; the heads are equal parts of F.
      blocks: how many blocks the channels are.
      affine: float32 (batch, 2, C) or (1, 2, C), a scale and a bias that `x` is to be
        taken with.
      shortcut: S, (1, C, F) of the type of `x`; None where F = C for `x` itself.
      origin: float32 (1, 1, F), about which the moments of the result are wanted; no
        gradient flows there. None for no moments.

    Returns:
      The map, (batch, pixels, F) of the type of `x`, and of each example the sums over
      the pixels of what lies beyond the origin and of its square, float32
      (batch, 2, F), or None. The softmax and the sums are float32.
    """
    arrays = _present(
        x=x,
        keys=keys,
        values=values,
        affine=affine,
        shortcut=shortcut,
        origin=origin,
    )
    tokens, features = values.shape[1:]
    fits = _fits(x, keys.shape[1] * blocks, features) and tokens % SUBLANES == 0
    if kernels_apply() and fits:
        found = _write_back(blocks, arrays)
    else:
        found = _write_back_by_products(blocks, arrays)
    return found["out"], found.get("sums")


def normalised(x: jax.Array, affine: jax.Array | None) -> jax.Array:
    """Returns `x`, taken with a scale and a bias as in `pool`."""
    if affine is None:
        return x
    x32 = x.astype(jnp.float32) * affine[:, :1] + affine[:, 1:]
    return x32.astype(x.dtype)


def _present(**arrays: jax.Array | None) -> Arrays:
    return {name: array for name, array in arrays.items() if array is not None}


def _fits(x: jax.Array, rows: int, features: int = LANES) -> bool:
    pixels, channels = x.shape[1:]
    widest = max(channels, features, rows)
    return (
        channels % LANES == 0
        and features % LANES == 0
        and rows % SUBLANES == 0
        and 4 * pixels * widest <= LARGEST_MAP
    )


# ---------------------------------------------------------------- by matrix products


def _pool_by_products(blocks: int, weights: bool, arrays: Arrays) -> Arrays:
    x, filters = normalised(arrays["x"], arrays.get("affine")), arrays["filters"]
    batch, pixels, channels = x.shape
    rows, width = filters.shape[1], channels // blocks
    maps = x.reshape(batch, pixels, blocks, width)
    filters = filters.reshape(filters.shape[0], rows, blocks, width)
    filters = jnp.broadcast_to(filters, (batch, *filters.shape[1:]))
    logits = jnp.einsum(
        "bpgc,bmgc->bgmp", maps, filters, preferred_element_type=jnp.float32
    )
    found = jax.nn.softmax(logits, axis=-1).astype(x.dtype)
    pooled = jnp.einsum("bgmp,bpgc->bmgc", found, maps).reshape(batch, rows, channels)
    if not weights:
        return {"pooled": pooled}
    return {"pooled": pooled, "weights": found.reshape(batch, blocks * rows, pixels)}


def _write_back_by_products(blocks: int, arrays: Arrays) -> Arrays:
    x, keys, values = (arrays[name] for name in ("x", "keys", "values"))
    x = normalised(x, arrays.get("affine"))
    batch, pixels, channels = x.shape
    tokens, features = values.shape[1:]
    each, width = keys.shape[1] // tokens, channels // blocks
    maps = x.reshape(batch, pixels, blocks, width)
    keys = keys.reshape(batch, each, tokens, blocks, width)
    heads = each * blocks
    logits = jnp.einsum(
        "bpgc,bklgc->bgklp", maps, keys, preferred_element_type=jnp.float32
    )
    weights = jax.nn.softmax(logits, axis=3).astype(x.dtype)
    weights = weights.reshape(batch, heads, tokens, pixels)
    values = values.reshape(batch, tokens, heads, features // heads)
    written = jnp.einsum("bhlp,blhd->bphd", weights, values)
    written = written.reshape(batch, pixels, features)
    out = written + (x @ arrays["shortcut"][0] if "shortcut" in arrays else x)
    if "origin" not in arrays:
        return {"out": out}
    centred = out.astype(jnp.float32) - jax.lax.stop_gradient(arrays["origin"])
    moments = [jnp.sum(m, axis=1) for m in (centred, jnp.square(centred))]
    return {"out": out, "sums": jnp.stack(moments, axis=1)}


def _pull(
    compute: Callable[[Arrays], Arrays], arrays: Arrays, cotangents: Arrays
) -> Arrays:
    return jax.vjp(compute, arrays)[1](cotangents)[0]


# ---------------------------------------------------------------------- and by kernels


def _by_platform(*arguments, **options) -> Arrays:
    return by_platform(*arguments, fits=_whole_steps, **options)


def _whole_steps(examples: int) -> bool:
    return 0 < examples <= EXAMPLES or examples % EXAMPLES == 0


def _fitting(arrays: Arrays, found: Arrays) -> Arrays:
    """Brings the cotangents that a kernel gives to the shapes and types of `arrays`."""
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


def _pool_by_platform(blocks: int, weights: bool, arrays: Arrays) -> Arrays:
    # Imported here, for only TPUs need it.
    from vt_flax.fused.kernels import pooling

    return _by_platform(
        functools.partial(pooling.forward, blocks=blocks, weights=weights),
        functools.partial(_pool_by_products, blocks, weights),
        arrays,
    )


_pool = jax.custom_vjp(_pool_by_platform, nondiff_argnums=(0, 1))


def _pool_forward(blocks, weights, arrays):
    return _pool_by_platform(blocks, weights, arrays), arrays


def _pool_backward(blocks, weights, arrays, cotangents):
    from vt_flax.fused.kernels import pooling

    found = _by_platform(
        functools.partial(pooling.backward, blocks=blocks),
        functools.partial(_pull, functools.partial(_pool_by_products, blocks, weights)),
        arrays,
        cotangents,
        finish=functools.partial(_fitting, arrays),
    )
    return (found,)


_pool.defvjp(_pool_forward, _pool_backward)


def _write_back_by_platform(blocks: int, arrays: Arrays) -> Arrays:
    from vt_flax.fused.kernels import writing

    return _by_platform(
        functools.partial(writing.forward, blocks=blocks),
        functools.partial(_write_back_by_products, blocks),
        arrays,
    )


_write_back = jax.custom_vjp(_write_back_by_platform, nondiff_argnums=(0,))


def _write_back_forward(blocks, arrays):
    return _write_back_by_platform(blocks, arrays), arrays


def _write_back_backward(blocks, arrays, cotangents):
    from vt_flax.fused.kernels import writing

    found = _by_platform(
        functools.partial(writing.backward, blocks=blocks),
        functools.partial(_pull, functools.partial(_write_back_by_products, blocks)),
        arrays,
        cotangents,
        finish=functools.partial(_fitting, arrays),
    )
    return (found,)


_write_back.defvjp(_write_back_forward, _write_back_backward)
