"""Times of several things that are measured in turns, and what they come to."""

import dataclasses
import statistics
from collections.abc import Callable, Sequence


@dataclasses.dataclass(frozen=True)
class Spread:
    """A median, and the quartiles around it (linear interpolation)."""

    low: float
    median: float
    high: float

    @property
    def quartiles(self) -> tuple[float, float]:
        """The lower and the upper quartile."""
        return self.low, self.high


def spread(values: Sequence[float]) -> Spread:
    """Returns the median and the quartiles of at least one value."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    return Spread(*statistics.quantiles(values, n=4, method="inclusive"))


def take_turns(timers: Sequence[Callable[[], float]], rounds: int) -> list[list[float]]:
    """Calls each timer once a round; returns the seconds of each, by round.

    What slows a machine down for a while hits all of them.
    """
    rows = [[timer() for timer in timers] for _ in range(rounds)]
    return [list(column) for column in zip(*rows, strict=True)]


def ratios(times: Sequence[float], others: Sequence[float]) -> Spread:
    """Returns how many times as long others took, round by round.

    The median of the rounds' ratios, not the ratio of medians: the two of a round are
    neighbors in time.
    """
    return spread([b / a for a, b in zip(times, others, strict=True)])
