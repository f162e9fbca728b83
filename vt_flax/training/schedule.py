"""Durations in steps, epochs or percent, and learning-rate schedules."""

import fractions
import math
import re

import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from vt_flax.errors import UserError, nearest

# How a duration is written that percentages themselves refer to.
ABSOLUTE = "as '1000 steps' or '90 epochs'"
NAMES = ("exponential", "step", "cosine", "poly", "constant")


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
    if _parse(text, percent=total is not None)[1] == "%" and total is None:
        raise UserError(
            f"duration {text!r}: a percentage has nothing to refer to here: write it "
            f"{ABSOLUTE}"
        )
    return round(_exact_steps(text, examples, batch, total or 0))


def interval_steps(key: str, text: str, **size: int) -> int:
    """Returns the steps from one time to the next, at least 1.

    Args:
      key: of the configuration, for the message.
      text: see `duration_steps`.
      **size: `examples`, `batch` and `total`, likewise.

    Raises:
      UserError: if `text` is no duration, or nothing at all.
    """
    if not _parse(text)[0]:
        raise UserError(
            f"{key} {text!r}: must be over 0; to have it at the end alone, write "
            "'100 %'"
        )
    return max(1, duration_steps(text, **size))


def make_schedule(
    config: ConfigDict, *, examples: int, batch: int, total: int
) -> optax.Schedule:
    """Returns the learning rate as a function of the step, from 0.

    A linear warm-up from `warmup_rate` to `rate` comes first. After it:
    `exponential` multiplies by `decay_factor` every `decay_every`, counted from the end
    of the warm-up, at once (`staircase`) or smoothly; `step` multiplies by
    `decay_factor` at each of `boundaries`, counted from the start of the run; `cosine`
    and `poly` fall to 0 at the end of the run, the second with the share of the run
    that is left, to the power of `power`.

    Args:
      config: the section `schedule`.
      examples: in an epoch.
      batch: examples in a step.
      total: steps of the run.

    Raises:
      UserError: for an unknown name, a bad duration, a rate or a factor out of range,
        or a warm-up that falls.
    """
    for key in ("rate", "warmup_rate"):
        if config[key] < 0:
            raise UserError(f"schedule.{key} {config[key]}: must be at least 0")
    if config.decay_factor <= 0:
        raise UserError(f"schedule.decay_factor {config.decay_factor}: must be over 0")

    def steps(text: str) -> int:
        return duration_steps(text, examples=examples, batch=batch, total=total)

    warmup = steps(config.warmup)
    if config.name == "constant":
        after = optax.constant_schedule(config.rate)
    elif config.name == "cosine":
        after = optax.cosine_decay_schedule(config.rate, max(1, total - warmup))
    elif config.name == "poly":
        if config.power <= 0:
            raise UserError(f"schedule.power {config.power}: must be over 0")
        length = max(1, total - warmup)

        def after(step):
            # Optax's own is not a number at the end where a compiler rounds what is
            # left to less than nothing.
            left = jnp.maximum(1 - step / length, 0.0)
            return config.rate * left**config.power

    elif config.name == "exponential":
        # An exact fraction: an epoch need not be a whole number of steps, and rounding
        # would add up over hundreds of them.
        every = _exact_steps(config.decay_every, examples, batch, total)
        if every <= 0:
            raise UserError(
                f"schedule.decay_every {config.decay_every!r}: must be over 0"
            )
        count = math.floor(total / every)
        starts = jnp.asarray(
            [math.ceil(every * i) for i in range(1, count + 1)], jnp.int32
        )

        def after(step):
            if config.staircase:
                periods = jnp.searchsorted(starts, step, side="right")
            else:
                periods = step / float(every)
            return config.rate * config.decay_factor**periods

    elif config.name == "step":
        boundaries = jnp.asarray(
            [steps(b) - warmup for b in config.boundaries], jnp.int32
        )

        def after(step):
            return config.rate * config.decay_factor ** jnp.sum(step >= boundaries)

    else:
        raise UserError(
            f"schedule.name {config.name!r} is not known{nearest(config.name, NAMES)}"
        )
    if not warmup:
        return after
    if config.warmup_rate > config.rate:
        raise UserError(
            f"schedule.warmup_rate {config.warmup_rate} is above schedule.rate "
            f"{config.rate}, to which a warm-up rises: lower it, or set "
            "schedule.warmup to '0 steps'"
        )
    rise = optax.linear_schedule(config.warmup_rate, config.rate, warmup)
    return optax.join_schedules([rise, after], [warmup])


def _exact_steps(
    text: str, examples: int, batch: int, total: int
) -> fractions.Fraction:
    """Returns a duration in steps, not rounded to whole ones."""
    number, unit = _parse(text)
    if unit.startswith("step"):
        return number
    if unit.startswith("epoch"):
        return number * fractions.Fraction(examples, batch)
    return number * fractions.Fraction(total, 100)


def _parse(text: str, percent: bool = True) -> tuple[fractions.Fraction, str]:
    pattern = r"\s*(\d+(?:\.\d+)?)\s*(steps?|epochs?|%)\s*"
    # In a list of them anything may stand.
    match = isinstance(text, str) and re.fullmatch(pattern, text)
    if not match and not percent:
        raise UserError(f"duration {text!r}: write it {ABSOLUTE}")
    if not match:
        raise UserError(
            f"duration {text!r}: write it as '1000 steps', '90 epochs' or '5 %'"
        )
    return fractions.Fraction(match[1]), match[2]
