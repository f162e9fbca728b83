"""How fast a training step can be at best, by what bounds it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vt_flax.analysis.topology import Topology


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds that a step takes of each part of a machine, at its best.

    Attributes:
      compute: its products, at the peak of the matrix units.
      memory: what it must move to and from main memory, at that memory's bandwidth.
      interconnect: what it must send to other chips, over all its links.
      input: its examples, at the rate that the hosts deliver; 0 where none is given.
      moved: as `memory`, of all that the program moves. It is the same but for machines
        with caches, which may spare some of it.
    """

    compute: float
    memory: float
    interconnect: float
    input: float
    moved: float

    @property
    def _bounds(self) -> dict[str, float]:
        return {
            name: getattr(self, name)
            for name in ("compute", "memory", "interconnect", "input")
        }

    @property
    def bound(self) -> float:
        """Seconds that a step takes at least: all at once, without a gap."""
        return max(self._bounds.values())

    @property
    def limit(self) -> str:
        """What takes so long."""
        return max(self._bounds, key=self._bounds.get)

    @property
    def in_turn(self) -> float:
        """An estimate in seconds: what a chip does one after the other, at its best."""
        return max(self.compute + self.moved + self.interconnect, self.input)


def roofline(
    costs: Mapping[str, Any], place: Topology, batch: int, host_rate: float = 0.0
) -> Roofline:
    """Returns the bounds of a step.

    Args:
      costs: of a chip and a step, see `step_costs.read_costs`.
      place: where it runs.
      batch: examples in a step, over all chips.
      host_rate: examples a second that each host delivers; 0: as many as are wanted.
    """
    chip = place.chip
    sent = sum(row["sent"] for row in costs["collectives"].values())
    moved = costs["traffic"] / chip.bandwidth
    return Roofline(
        compute=2 * costs["macs"] / chip.flops,
        memory=costs["given"] / chip.bandwidth if chip.cached else moved,
        interconnect=sent / place.interconnect if sent and place.interconnect else 0.0,
        input=batch / (host_rate * place.hosts) if host_rate else 0.0,
        moved=moved,
    )
