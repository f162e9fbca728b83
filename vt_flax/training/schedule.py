"""Learning rate schedules."""

import math

import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from vt_flax.training.durations import duration_steps, exact_steps


def make_schedule(
    config: ConfigDict, *, examples: int, batch: int, total: int
) -> optax.Schedule:
    """Returns the learning rate as a function of the step, from 0.

    First comes a linear warm-up from `warmup_learning_rate` to `learning_rate`. Then
    `exponential` multiplies by `decay_factor` every `decay_every`, counted from the end
    of the warm-up, at once (`staircase`) or smoothly; `step` multiplies by
    `decay_factor` at each of `boundaries`, counted from the start of the run; `cosine`
    and `poly` fall to 0 at the end of the run, the second with the remaining share of
    the run to the power of `power`.

    Args:
      config: the section `schedule`.
      examples: in an epoch.
      batch: examples in a step.
      total: steps of the run.
    """
    sizes = {"examples": examples, "batch": batch, "total": total}
    warmup = duration_steps(config.warmup, **sizes)
    after = _after_warmup(config, warmup, sizes)
    if not warmup:
        return after
    rise = optax.linear_schedule(
        config.warmup_learning_rate, config.learning_rate, warmup
    )
    return optax.join_schedules([rise, after], [warmup])


def _after_warmup(
    config: ConfigDict, warmup: int, sizes: dict[str, int]
) -> optax.Schedule:
    """Returns the learning rate as a function of the steps after the warm-up."""
    total = sizes["total"]
    length = max(1, total - warmup)
    if config.name == "constant":
        return optax.constant_schedule(config.learning_rate)
    if config.name == "cosine":
        return optax.cosine_decay_schedule(config.learning_rate, length)
    if config.name == "poly":

        def poly(step):
            # Optax's own is NaN at the end where a compiler rounds the remaining share
            # to less than 0.
            left = jnp.maximum(1 - step / length, 0.0)
            return config.learning_rate * left**config.power

        return poly
    if config.name == "exponential":
        # An exact fraction: an epoch need not be a whole number of steps, and rounding
        # would add up over hundreds of them.
        every = exact_steps(config.decay_every, **sizes)
        if not config.staircase:
            return optax.exponential_decay(
                config.learning_rate, float(every), config.decay_factor
            )
        count = math.floor(total / every)
        steps = [math.ceil(every * i) for i in range(1, count + 1)]
    else:
        steps = [duration_steps(text, **sizes) - warmup for text in config.boundaries]
    boundaries = jnp.asarray(steps, jnp.int32)
    return lambda step: (
        config.learning_rate * config.decay_factor ** jnp.sum(step >= boundaries)
    )
