"""Durations: text such as `90 epochs`, `1000 steps` or `5 %` of the run."""

import fractions
import re

# An example of a duration in each unit.
UNITS = {"step": "1000 steps", "epoch": "90 epochs", "%": "5 %"}


def parse(text: str) -> tuple[fractions.Fraction, str]:
    """Returns the number and the unit of a duration; the unit is empty for none."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(steps?|epochs?|%)\s*", text)
    if not match:
        return fractions.Fraction(0), ""
    number, unit = match.groups()
    return fractions.Fraction(number), unit.rstrip("s")


def exact_steps(
    text: str, *, examples: int, batch: int, total: int = 0
) -> fractions.Fraction:
    """Returns the steps that a duration takes, not rounded to whole ones.

    Args:
      text: a duration that the configuration's schema accepts.
      examples: in an epoch.
      batch: examples in a step.
      total: steps of the run, to which percentages refer.
    """
    number, unit = parse(text)
    if unit == "epoch":
        return number * examples / batch
    return number * total / 100 if unit == "%" else number


def duration_steps(text: str, **sizes: int) -> int:
    """Returns the number of steps that a duration takes; see `exact_steps`.

    >>> duration_steps("2 epochs", examples=1000, batch=100)
    20
    """
    return round(exact_steps(text, **sizes))
