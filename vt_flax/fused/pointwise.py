"""1 x 1 convolutions whose two gradients are computed in one pass over the maps.

The gradient by the map and that by the kernel both need the wider of a bottleneck's
maps. On TPUs one kernel (`fused.kernels.pointwise`) gives both and reads it once;
elsewhere they are products. What else would read a wide map is done on the way: the sum
that is the bias's gradient, ReLU's derivative, the sum of gradients where a map
branches.
"""

import functools

import jax
import jax.numpy as jnp

from vt_flax.fused.pixel_attention import LANES
from vt_flax.fused.platforms import Arrays, by_platform, kernels_apply
from vt_flax.nn.layers import convolve, pixel_product, relu

# What channels and examples are to be multiples of.
TILE, ROWS = 64, 16
# Of the weights, in bytes of float32: the 16 MB of a v4 hold their gradient four times,
# beside the maps. Larger ones stand at 7 x 7, where XLA keeps whole maps on the chip.
LARGEST_KERNEL = 2**20


def widen(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    shares: jax.Array | None = None,
    *,
    rectify: bool = False,
    grain: int = 0,
) -> jax.Array:
    """Convolves with a 1 x 1 kernel that gives more channels than it takes.

    Args:
      x: (batch, H, W, C).
      kernel: (1, 1, C, features), float32.
      bias: (1, parts, features), float32.
      shares: of each part of the bias that each example gets, (batch, parts), float32;
        it has no gradient. None for all of all.
      rectify: whether max(x, 0) is to be taken for `x`.
      grain: channels of the maps that `x` is put together of, the fewest; 0 if it is
        one. They decide how it lies in a TPU's memory.

    Returns:
      (batch, H, W, features) of the type of `x`.
    """
    arrays = {"x": x, "kernel": kernel, "bias": bias}
    if shares is not None:
        arrays["shares"] = jax.lax.stop_gradient(shares)
    compute = _widen if kernels_apply() else _widen_plainly
    return compute((rectify, grain or x.shape[-1]), arrays)


def rectify_and_narrow(
    x: jax.Array, kernel: jax.Array, stride: int = 1
) -> tuple[jax.Array, jax.Array]:
    """Rectifies, and convolves with a 1 x 1 kernel that gives fewer channels.

    Args:
      x: (batch, H, W, C).
      kernel: (1, 1, C, features), float32.
      stride: of what is wanted of max(x, 0) itself.

    Returns:
      max(x, 0) of every `stride`-th pixel of every `stride`-th row, and max(x, 0)
      convolved, (batch, H, W, features) of the type of `x`.
    """
    compute = _narrow if kernels_apply() else _narrow_plainly
    found = compute(stride, {"x": x, "kernel": kernel})
    return found["r"], found["y"]


def _fits(narrow: int, wide: int, examples: int, grain: int) -> bool:
    """Whether the kernels take so many channels and examples."""
    return (
        narrow % TILE == 0
        and wide % LANES == 0
        and narrow < wide
        and 4 * narrow * wide <= LARGEST_KERNEL
        and examples % ROWS == 0
        # Of unfilled lanes XLA chooses those of the batch or the channels.
        and (grain % LANES == 0 or examples % LANES == 0 or examples <= TILE)
    )


# ----------------------------------------------------------------------- to more


def _widen_plainly(how: tuple[bool, int], arrays: Arrays) -> jax.Array:
    rectify, _ = how
    x = relu(arrays["x"]) if rectify else arrays["x"]
    y = convolve(x, arrays["kernel"], dtype=x.dtype)
    bias = arrays["bias"][0]
    if "shares" in arrays:
        exact = jax.lax.Precision.HIGHEST
        bias = jnp.matmul(arrays["shares"], bias, precision=exact)[:, None, None]
    else:
        bias = jnp.sum(bias, axis=0)
    return (y.astype(jnp.float32) + bias).astype(x.dtype)


_widen = jax.custom_vjp(_widen_plainly, nondiff_argnums=(0,))


def _widen_forward(how, arrays):
    return _widen_plainly(how, arrays), arrays


def _widen_backward(how, arrays, dy):
    # Imported here, for only TPUs need it.
    from vt_flax.fused.kernels import pointwise

    rectify, grain = how

    def products(given, cotangent):
        def compute(x, bias):
            return _widen_plainly(how, given | {"x": x, "bias": bias})

        dx, dbias = jax.vjp(compute, given["x"], given["bias"])[1](cotangent["dy"])
        x = relu(given["x"]) if rectify else given["x"]
        # In float32: what is normalised by statistics of x takes their gradient from
        # it. Devices add it up together with the bias's.
        dkernel = pixel_product(x, cotangent["dy"])[None, None]
        return {"x": dx, "kernel": dkernel, "bias": dbias}

    def kernel(given, cotangent):
        x = given["x"]
        weights = given["kernel"][0].astype(x.dtype)
        taken = {"x": x, "kernel": weights, "dy": cotangent["dy"]}
        if "shares" in given:
            taken["shares"] = given["shares"]
        return pointwise.widening(taken, rectify=rectify, grain=grain)

    def finish(found):
        bias = jnp.sum(found["bias"], 0)[None]
        return {
            "x": found["x"],
            "kernel": jnp.sum(found["kernel"], 0)[None, None],
            # Of parts that all examples get whole, each has the gradient of the sum.
            "bias": jnp.broadcast_to(bias, arrays["bias"].shape),
        }

    def fits(examples):
        narrow, wide = arrays["kernel"].shape[2:]
        return _fits(narrow, wide, examples, grain)

    found = by_platform(kernel, products, arrays, {"dy": dy}, fits=fits, finish=finish)
    if "shares" in arrays:
        found["shares"] = jnp.zeros_like(arrays["shares"])
    return (found,)


_widen.defvjp(_widen_forward, _widen_backward)


# ---------------------------------------------------------------------- and to fewer


def _narrow_plainly(stride: int, arrays: Arrays) -> Arrays:
    r = relu(arrays["x"])
    y = convolve(r, arrays["kernel"], dtype=r.dtype)
    return {"r": r[:, ::stride, ::stride], "y": y}


_narrow = jax.custom_vjp(_narrow_plainly, nondiff_argnums=(0,))


def _narrow_forward(stride, arrays):
    # Not r, which would be written for this alone.
    return _narrow_plainly(stride, arrays), arrays


def _narrow_backward(stride, arrays, cotangents):
    from vt_flax.fused.kernels import pointwise

    def products(given, cotangent):
        compute = functools.partial(_narrow_plainly, stride)
        return jax.vjp(compute, given)[1](cotangent)[0]

    def kernel(given, cotangent):
        x = given["x"]
        return pointwise.narrowing(
            {
                "x": x,
                "kernel": jnp.swapaxes(given["kernel"][0], 1, 2).astype(x.dtype),
                "dr": cotangent["r"],
                "dy": cotangent["y"],
            }
        )

    def finish(found):
        return {
            "x": found["x"],
            "kernel": jnp.sum(found["kernel"], 0).T[None, None],
        }

    def fits(examples):
        wide, narrow = arrays["kernel"].shape[2:]
        even = not any(side % stride for side in arrays["x"].shape[1:3])
        return stride <= 2 and even and _fits(narrow, wide, examples, narrow)

    return (
        by_platform(kernel, products, arrays, cotangents, fits=fits, finish=finish),
    )


_narrow.defvjp(_narrow_forward, _narrow_backward)
