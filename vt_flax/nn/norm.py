"""Batch normalisation with a span: over which examples statistics are taken."""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from vt_flax.errors import UserError

PLACEMENTS = ("tokens", "every_map", "none")


def parse_span(span: str) -> str | int:
    """Returns `"global"`, `"frozen"` or the group size that `span` spells.

    Raises:
      UserError: if `span` is none of these.
    """
    if span in ("global", "frozen"):
        return span
    try:
        group = int(span)
    except ValueError:
        group = 0
    if group < 1:
        raise UserError(
            f"norm_span {span!r} is not known: write 'global', 'frozen' or a number of "
            "examples such as '32'"
        )
    return group


class NormVariables(NamedTuple):
    """What batch normalisation keeps, (channels,) each, float32."""

    running_mean: nn.Variable
    running_var: nn.Variable
    scale: jax.Array
    bias: jax.Array


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last (Ioffe and Szegedy, 2015).

    Under `jit` with a sharded batch the global span is synchronised over every device
    because the mean is that of the whole logical array. A group span takes statistics
    over consecutive examples; no data crosses devices where a group lies on one.
    Running averages hold the mean and the biased variance, averaged over groups.

    Attributes:
      span: `"global"` (all examples), the number of examples in a group, written as a
        string, or `"frozen"` (running averages are used and left alone in training).
      momentum: weight of the old running average in each update.
      epsilon: added to the variance.
      scale_init: initializer of the scale; zeros make a residual branch start silent.
      two_pass: whether the variance is taken about the batch's own mean, in a second
        pass over `x`. In one pass it is taken about the running mean, which costs
        digits while that is many deviations away from the batch's: at 100, the result
        is off by 1e-3.
      dtype: type of the result. Statistics are always float32.
    """

    span: str = "global"
    momentum: float = 0.9
    epsilon: float = 1e-5
    scale_init: Any = nn.initializers.ones
    two_pass: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Normalises `x`.

        Args:
          x: (batch, ..., channels).
          train: whether to use, and fold in, the statistics of this batch.

        Returns:
          An array of the shape of `x`.

        Raises:
          UserError: if the batch is not a whole number of groups.
        """
        channels = x.shape[-1]
        running_mean, running_var, scale, bias = self._variables(channels)
        if self._uses_running(train):
            factor = scale * jax.lax.rsqrt(running_var.value + self.epsilon)
            centred = x.astype(jnp.float32) - running_mean.value
            return (centred * factor + bias).astype(self.dtype)

        batch = x.shape[0]
        group = self._group(batch)
        grouped = x.astype(jnp.float32).reshape(batch // group, group, *x.shape[1:])
        axes = tuple(range(1, grouped.ndim - 1))
        # A constant known before the batch is seen keeps the moments small in one pass.
        origin = running_mean.value
        if self.two_pass:
            origin = jnp.mean(grouped, axes, keepdims=True)
        centred = grouped - origin
        offset = jnp.mean(centred, axes, keepdims=True)
        var = jnp.maximum(
            jnp.mean(jnp.square(centred), axes, keepdims=True) - jnp.square(offset), 0.0
        )
        self._fold_in(running_mean, jnp.mean(origin + offset, 0).reshape(channels))
        self._fold_in(running_var, jnp.mean(var, 0).reshape(channels))
        normalised = (centred - offset) * jax.lax.rsqrt(var + self.epsilon)
        return (normalised * scale + bias).astype(self.dtype).reshape(x.shape)

    @nn.nowrap
    def _variables(self, channels: int) -> NormVariables:
        running_mean = self.variable(
            "batch_stats", "mean", jnp.zeros, (channels,), jnp.float32
        )
        running_var = self.variable(
            "batch_stats", "var", jnp.ones, (channels,), jnp.float32
        )
        scale = self.param("scale", self.scale_init, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        return NormVariables(running_mean, running_var, scale, bias)

    @nn.nowrap
    def _uses_running(self, train: bool) -> bool:
        return not train or parse_span(self.span) == "frozen"

    @nn.nowrap
    def _group(self, batch: int) -> int:
        if batch == 0:
            raise UserError("a batch of no examples has no statistics: set train=False")
        span = parse_span(self.span)
        group = batch if span == "global" else span
        if batch % group:
            raise UserError(
                f"norm_span {group} does not divide the batch of {batch} examples: "
                "choose a divisor of the batch size"
            )
        return group

    @nn.nowrap
    def _fold_in(self, running: nn.Variable, new: jax.Array) -> None:
        if not self.is_initializing():
            running.value = self.momentum * running.value + (1 - self.momentum) * new


@dataclasses.dataclass(frozen=True)
class Normalization:
    """Where the Visual Transformer modules normalise, and how.

    The paper does not say. `"tokens"` (our default) leaves every product of two pixel
    maps as printed, so that the equations may be re-associated.

    Attributes:
      placement: `"tokens"` (after the token map, after each feed-forward map and on the
        projector's sum), `"every_map"` (these, and after every other 1 x 1 map, as in
        the authors' later code) or `"none"`.
      span: see `BatchNorm`.
      momentum: see `BatchNorm`.
      epsilon: see `BatchNorm`.
      dtype: see `BatchNorm`.
    """

    placement: str = "tokens"
    span: str = "global"
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    def __post_init__(self):
        if self.placement not in PLACEMENTS:
            raise UserError(
                f"norm placement {self.placement!r} is not known: choose from "
                f"{', '.join(PLACEMENTS)}"
            )
        parse_span(self.span)
        if not 0.0 <= self.momentum < 1.0:
            raise UserError(
                f"norm momentum {self.momentum}: must be at least 0, and under 1"
            )
        if self.epsilon <= 0.0:
            raise UserError(f"norm epsilon {self.epsilon}: must be over 0")

    def layer(
        self,
        name: str,
        scale_init: Any = nn.initializers.ones,
        *,
        two_pass: bool = False,
    ) -> BatchNorm:
        """Returns a BatchNorm with these settings, wherever it stands."""
        return BatchNorm(
            self.span,
            self.momentum,
            self.epsilon,
            scale_init=scale_init,
            two_pass=two_pass,
            dtype=self.dtype,
            name=name,
        )

    def tokens(self, x: jax.Array, name: str, *, train: bool) -> jax.Array:
        """Normalises a token-side result or a projector's sum, unless switched off.

        In two passes: at the start of training a token hardly varies over the images.
        """
        if self.placement == "none":
            return x
        return self.layer(name, two_pass=True)(x, train=train)

    def map(self, x: jax.Array, name: str, *, train: bool) -> jax.Array:
        """Normalises the result of any other 1 x 1 map, if `placement` asks for it."""
        if self.placement != "every_map":
            return x
        return self.layer(name, two_pass=True)(x, train=train)
