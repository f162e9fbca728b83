"""How fast a training step can be at best, by what bounds it."""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds that a step takes of each part of a chip, at its best.

    Attributes:
      compute: its products, at the peak of the matrix units.
      memory: what it moves to and from main memory, at that memory's bandwidth.
      interconnect: what it must send to other chips, over all its links.
    """

    compute: float
    memory: float
    interconnect: float

    @property
    def bound(self) -> float:
        """Seconds that a step takes at least: all three at once, without a gap."""
        return max(dataclasses.astuple(self))

    @property
    def limit(self) -> str:
        """Which of the three it is."""
        parts = dataclasses.asdict(self)
        return max(parts, key=parts.get)

    @property
    def in_turn(self) -> float:
        """An estimate in seconds: one after the other, each still at its best."""
        return sum(dataclasses.astuple(self))


def roofline(
    costs: Mapping, flops: float, bandwidth: float, interconnect: float
) -> Roofline:
    """Returns the bounds of a step.

    Args:
      costs: of a chip and a step, see `step_costs.read_costs`.
      flops: operations a second of its matrix units.
      bandwidth: bytes a second of its main memory.
      interconnect: bytes a second that it can send; 0 where there is no other chip, or
        nothing is known.
    """
    sent = sum(row["sent"] for row in costs["collectives"].values())
    return Roofline(
        2 * costs["macs"] / flops,
        costs["traffic"] / bandwidth,
        sent / interconnect if interconnect else 0.0,
    )
