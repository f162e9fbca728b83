"""What local attention layers share: weights over a window, and sums with them.

Both formulations of a layer are here in their common part. `unfold` is the reference:
windows are copied out, and the equations are matrix products as printed. `scan` goes
through the window offset by offset with a running softmax, as flash attention does, and
holds neither windows nor weights; its gradient makes them anew. A block's memory is a
fifth to an eighth of the unfolded one's on a CPU, a twentieth or less on a TPU
(BENCHMARKS.md, `benchmark attention`).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vt_flax.errors import UserError
from vt_flax.models.comparison.windows import Window, over_window, sum_over_window
from vt_flax.nn.layers import PRODUCT_SCOPE

FORMULATIONS = ("scan", "unfold")

# Called as score(shared, each_o, keys_o): see `attend`.
Score = Callable[[Any, Any, Any], jax.Array]


def check_formulation(formulation: str) -> None:
    """Raises `UserError` for an unknown formulation."""
    if formulation not in FORMULATIONS:
        raise UserError(
            f"formulation {formulation!r} is not known: choose from "
            f"{', '.join(FORMULATIONS)}"
        )


def product(x: jax.Array, y: jax.Array) -> jax.Array:
    """Multiplies elementwise what is summed over channels or offsets afterwards.

    A matrix product in all but form: `analysis.macs` counts its multiply-adds.
    """
    with jax.named_scope(PRODUCT_SCOPE):
        return x * y


def group_count(channels: int, share: int) -> int:
    """Returns the groups of `share` channels; the last may be smaller."""
    return -(-channels // share)


def spread(weights: jax.Array, share: int, channels: int) -> jax.Array:
    """Repeats the weights of groups (..., groups) over their channels."""
    return jnp.repeat(weights, share, axis=-1)[..., :channels]


def weighted(weights: jax.Array, values: jax.Array, share: int) -> jax.Array:
    """Multiplies values (..., C), float32, by the weights of their groups."""
    weights = spread(weights, share, values.shape[-1])
    return product(weights, values.astype(jnp.float32))


def attend(
    score: Score,
    window: Window,
    share: int,
    shared: Any,
    each: Any,
    keys: Any,
    values: jax.Array,
) -> jax.Array:
    """Sums values over windows with the softmax of scores as weights.

    Args:
      score: gives the logits of an offset, (batch, H', W', groups) in float32, called
        as `score(shared, each_o, keys_o)`. A function of these arguments alone: it
        closes over no array.
      window: the window.
      share: channels of the values that a group's weight is for.
      shared: pytree of arrays that all offsets share, such as the queries.
      each: pytree of arrays (size * size, ...): a value for each offset.
      keys: pytree of maps (batch, H, W, ...), seen at the offset by `score`.
      values: (batch, H, W, C).

    Returns:
      (batch, H', W', C), of the type of the values.
    """
    return _attend(score, window, share, shared, each, keys, values)[0]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _attend(score, window, share, shared, each, keys, values):
    """Returns what `attend` does, and the logarithms of the softmax's totals."""

    def seen(each_o, maps_o):
        keys_o, values_o = maps_o
        return score(shared, each_o, keys_o), values_o

    def step(state, inputs):
        highest, total, out = state
        logits, values_o = at_offset(inputs)
        new = jnp.maximum(highest, logits)
        fade, powers = jnp.exp(highest - new), jnp.exp(logits - new)
        total = total * fade + powers
        out = out * spread(fade, share, out.shape[-1])
        return (new, total, out + weighted(powers, values_o, share)), None

    at_offset, offsets = over_window(seen, window, each, (keys, values))
    logits, values_o = jax.eval_shape(at_offset, jax.tree.map(lambda x: x[0], offsets))
    start = (
        jnp.full(logits.shape, -jnp.inf, jnp.float32),
        jnp.zeros(logits.shape, jnp.float32),
        jnp.zeros(values_o.shape, jnp.float32),
    )
    (highest, total, out), _ = jax.lax.scan(step, start, offsets)
    out = (out / spread(total, share, out.shape[-1])).astype(values.dtype)
    return out, highest + jnp.log(total)


@_attend.defjvp
def _attend_jvp(score, window, share, primals, tangents):
    out, log_total = _attend(score, window, share, *primals)
    held = out.astype(jnp.float32)

    # With p the weights, the tangent of the output is the sum over the window of
    # p (v - out) times a logit's tangent and p times a value's, and the logarithm's is
    # the sum of p times a logit's. Both are tangents of these sums, with the softmax's
    # total and `out` held. They are taken offset by offset, and so is their transpose.
    def sums(shared, each, keys, values):
        def term(each_o, maps_o):
            keys_o, values_o = maps_o
            powers = jnp.exp(score(shared, each_o, keys_o) - log_total)
            change = values_o.astype(jnp.float32) - held
            return spread(powers, share, values.shape[-1]) * change, powers

        return sum_over_window(term, window, each, (keys, values))

    change, growth = jax.jvp(sums, primals, tangents)[1]
    return (out, log_total), (change.astype(out.dtype), growth)


def aggregate(weights: jax.Array, windows: jax.Array, share: int) -> jax.Array:
    """Sums unfolded values with weights, as matrix products.

    Args:
      weights: (batch, H', W', size * size, groups).
      windows: (batch, H', W', size * size, C).
      share: channels that a group's weight is for.

    Returns:
      (batch, H', W', C), of the type of the values.
    """
    channels = windows.shape[-1]
    whole = channels // share
    grouped = windows[..., : whole * share]
    grouped = grouped.reshape(*windows.shape[:-1], whole, share)
    weights = weights.astype(windows.dtype)
    out = jnp.einsum("bhwog,bhwogd->bhwgd", weights[..., :whole], grouped)
    out = out.reshape(*out.shape[:3], whole * share)
    if channels == whole * share:
        return out
    rest = windows[..., whole * share :]
    last = jnp.einsum("bhwo,bhwod->bhwd", weights[..., whole], rest)
    return jnp.concatenate([out, last], -1)
