"""Local attention: weighted sums over a window around every pixel.

The sums go through the window one offset at a time with a running softmax, as flash
attention does. Neither windows nor weights are stored; the gradient recomputes them.
A 7 x 7 window copied out would be 49 times as large as the map.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vt_flax.nn.layers import PRODUCT_SCOPE

# Called as `term(per_offset, maps)`: the values of one offset, and its views of maps.
Term = Callable[[Any, Any], Any]
# Called as `score(shared, per_offset, keys)`: see `attend`.
Score = Callable[[Any, Any, Any], jax.Array]


@dataclasses.dataclass(frozen=True)
class Window:
    """Square of pixels around each pixel, or around each `stride`-th one.

    Arrays by offset are in row-major order of the window.

    Attributes:
      size: side in pixels, odd.
      stride: distance of the centers in pixels; the first center is pixel 0.
      padding: mode of `jnp.pad` beyond the border: `constant` for zeros, or `reflect`
        for the map mirrored about its outermost pixels, as often as needed.
    """

    size: int
    stride: int = 1
    padding: str = "constant"

    def pad(self, x: jax.Array) -> jax.Array:
        """Pads (batch, H, W, C) by half a window on every side."""
        edge = (self.size // 2,) * 2
        return jnp.pad(x, ((0, 0), edge, edge, (0, 0)), self.padding)

    def centers(self, x: jax.Array) -> jax.Array:
        """Returns the central pixels (batch, H', W', C) of the windows."""
        return x[:, :: self.stride, :: self.stride]

    def view(self, padded: jax.Array, index: int | jax.Array) -> jax.Array:
        """Returns the pixels (batch, H', W', C) of a padded map at offset `index`."""
        batch, height, width, channels = padded.shape
        edge = self.size - 1
        start = (0, index // self.size, index % self.size, 0)
        shape = (batch, height - edge, width - edge, channels)
        return self.centers(jax.lax.dynamic_slice(padded, start, shape))


def sum_over_window(term: Term, window: Window, per_offset: Any, maps: Any) -> Any:
    """Sums a term over the offsets of a window, one offset at a time.

    Neither the sum nor its gradient stores the views of more than one offset: the
    gradient recomputes the terms.

    Args:
      term: called as `term(per_offset, maps)` for one offset, returns a pytree of
        arrays.
      window: the window.
      per_offset: pytree of arrays (size * size, ...), indexed by offset.
      maps: pytree of maps (batch, H, W, C), of which a term gets the pixels at its
        offset from the centers, (batch, H', W', C).

    Returns:
      The sum of the terms.
    """
    at_offset, inputs = over_window(term, window, per_offset, maps)

    def step(total, inputs):
        return jax.tree.map(jnp.add, total, at_offset(inputs)), None

    return jax.lax.scan(step, zeros(at_offset, inputs), inputs)[0]


def over_window(
    term: Term, window: Window, per_offset: Any, maps: Any
) -> tuple[Callable[[Any], Any], Any]:
    """Returns `term` as a function of the inputs of a scan step, and these inputs."""
    padded = jax.tree.map(window.pad, maps)

    def at_offset(inputs):
        index, values = inputs
        return term(values, jax.tree.map(lambda x: window.view(x, index), padded))

    # The gradient stores the inputs alone, and not the views.
    at_offset = jax.checkpoint(at_offset, prevent_cse=False)
    return at_offset, (jnp.arange(window.size**2), per_offset)


def zeros(at_offset: Callable[[Any], Any], inputs: Any) -> Any:
    """Returns zeros in the shapes of `at_offset`'s results for one offset."""
    shapes = jax.eval_shape(at_offset, jax.tree.map(lambda x: x[0], inputs))
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


def product(x: jax.Array, y: jax.Array) -> jax.Array:
    """Multiplies elements whose products are summed over channels or offsets later.

    `paper.macs` counts them like those of a matrix product.
    """
    with jax.named_scope(PRODUCT_SCOPE):
        return x * y


def expand_groups(weights: jax.Array, group_channels: int, channels: int) -> jax.Array:
    """Repeats the weights of groups (..., groups) over channels (..., channels).

    The last group may have fewer channels than `group_channels`.
    """
    return jnp.repeat(weights, group_channels, axis=-1)[..., :channels]


def weigh(weights: jax.Array, values: jax.Array, group_channels: int) -> jax.Array:
    """Multiplies values (..., C) by the weights of their groups, in float32."""
    weights = expand_groups(weights, group_channels, values.shape[-1])
    return product(weights, values.astype(jnp.float32))


def attend(
    score: Score,
    window: Window,
    group_channels: int,
    shared: Any,
    per_offset: Any,
    keys: Any,
    values: jax.Array,
) -> jax.Array:
    """Sums values over windows, weighted by the softmax of scores.

    Args:
      score: returns the logits of one offset, (batch, H', W', groups) in float32,
        called as `score(shared, per_offset, keys)`. It must not close over arrays.
      window: the window.
      group_channels: number of channels per group weight.
      shared: pytree of arrays that do not depend on the offset, such as the queries.
      per_offset: pytree of arrays (size * size, ...), indexed by offset.
      keys: pytree of maps (batch, H, W, ...), of which `score` gets the views.
      values: (batch, H, W, C).

    Returns:
      (batch, H', W', C), of the type of the values.
    """
    return _attend(score, window, group_channels, shared, per_offset, keys, values)[0]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _attend(score, window, group_channels, shared, per_offset, keys, values):
    """Returns the result of `attend`, and the logarithms of the softmax's sums."""

    def logits_and_values(per_offset, maps):
        keys, values = maps
        return score(shared, per_offset, keys), values

    def step(state, inputs):
        highest, total, out = state
        logits, values = at_offset(inputs)
        new = jnp.maximum(highest, logits)
        decay, powers = jnp.exp(highest - new), jnp.exp(logits - new)
        total = total * decay + powers
        out = out * expand_groups(decay, group_channels, out.shape[-1])
        return (new, total, out + weigh(powers, values, group_channels)), None

    at_offset, inputs = over_window(
        logits_and_values, window, per_offset, (keys, values)
    )
    total, out = zeros(at_offset, inputs)
    start = (jnp.full_like(total, -jnp.inf), total, out.astype(jnp.float32))
    (highest, total, out), _ = jax.lax.scan(step, start, inputs)
    out = out / expand_groups(total, group_channels, out.shape[-1])
    return out.astype(values.dtype), highest + jnp.log(total)


@_attend.defjvp
def _attend_jvp(score, window, group_channels, primals, tangents):
    out, log_total = _attend(score, window, group_channels, *primals)
    constant = out.astype(jnp.float32)

    # With p the weights, the tangent of the output is the sum over the window of
    # p (v - out) times a logit's tangent and p times a value's; that of the logarithm
    # is the sum of p times a logit's. Both are tangents of the sums below, in which the
    # softmax's total and `out` are constants. These are taken offset by offset, and so
    # is their transpose.
    def sums(shared, per_offset, keys, values):
        def term(per_offset, maps):
            keys, values = maps
            powers = jnp.exp(score(shared, per_offset, keys) - log_total)
            change = values.astype(jnp.float32) - constant
            weights = expand_groups(powers, group_channels, values.shape[-1])
            return weights * change, powers

        return sum_over_window(term, window, per_offset, (keys, values))

    change, growth = jax.jvp(sums, primals, tangents)[1]
    return (out, log_total), (change.astype(out.dtype), growth)
