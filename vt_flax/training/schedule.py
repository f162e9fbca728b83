"""Durations in steps, epochs or percent, and learning-rate schedules."""

import re

import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from vt_flax.errors import UserError, nearest

NAMES = ("exponential", "step", "cosine", "constant")


def duration_steps(
    text: str, *, examples: int, batch: int, total: int | None = None
) -> int:
    """Returns the number of steps that a duration takes.

    >>> duration_steps("2 epochs", examples=1000, batch=100)
    20

    Args:
      text: `"N steps"`, `"N epochs"` or `"N %"`; N may be a fraction.
      examples: in an epoch.
      batch: examples in a step.
      total: steps of the run, which percentages refer to.

    Raises:
      UserError: if `text` is no duration, or a percentage of an unknown total.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(steps?|epochs?|%)\s*", text)
    if not match:
        raise UserError(
            f"duration {text!r}: write it as '1000 steps', '90 epochs' or '5 %'"
        )
    number, unit = float(match[1]), match[2]
    if unit.startswith("step"):
        return round(number)
    if unit.startswith("epoch"):
        return round(number * examples / batch)
    if total is None:
        raise UserError(f"duration {text!r}: a percentage has nothing to refer to here")
    return round(number / 100 * total)


def make_schedule(
    config: ConfigDict, *, examples: int, batch: int, total: int
) -> optax.Schedule:
    """Returns the learning rate as a function of the step, from 0.

    A linear warm-up from `warmup_rate` to `rate` comes first. After it:
    `exponential` multiplies by `decay_factor` every `decay_every`, counted from the end
    of the warm-up, at once (`staircase`) or smoothly; `step` multiplies by
    `decay_factor` at each of `boundaries`, counted from the start of the run; `cosine`
    falls to 0 at the end of the run.

    Args:
      config: the section `schedule`.
      examples: in an epoch.
      batch: examples in a step.
      total: steps of the run.

    Raises:
      UserError: for an unknown name or a bad duration.
    """

    def steps(text: str) -> int:
        return duration_steps(text, examples=examples, batch=batch, total=total)

    warmup = steps(config.warmup)
    if config.name == "constant":
        after = optax.constant_schedule(config.rate)
    elif config.name == "cosine":
        after = optax.cosine_decay_schedule(config.rate, max(1, total - warmup))
    elif config.name == "exponential":
        # Kept as a fraction: an epoch need not be a whole number of steps, and the
        # rounding would add up over hundreds of them.
        number, unit = _number_and_unit(config.decay_every)
        per_step = {"epoch": examples / batch, "step": 1.0, "%": total / 100}[unit]
        every = number * per_step
        if every <= 0:
            raise UserError(
                f"schedule.decay_every {config.decay_every!r}: must be over 0"
            )

        def after(step):
            periods = step / every
            if config.staircase:
                # A step that begins a period may come out a rounding below it.
                periods = jnp.floor(periods + 1e-4)
            return config.rate * config.decay_factor**periods

    elif config.name == "step":
        after = optax.piecewise_constant_schedule(
            config.rate,
            {
                max(0, steps(boundary) - warmup): config.decay_factor
                for boundary in config.boundaries
            },
        )
    else:
        raise UserError(
            f"schedule.name {config.name!r} is not known{nearest(config.name, NAMES)}"
        )
    if not warmup:
        return after
    rise = optax.linear_schedule(config.warmup_rate, config.rate, warmup)
    return optax.join_schedules([rise, after], [warmup])


def _number_and_unit(text: str) -> tuple[float, str]:
    duration_steps(text, examples=1, batch=1, total=100)
    number, unit = re.fullmatch(r"\s*([\d.]+)\s*(\S+?)s?\s*", text).groups()
    return float(number), unit
