"""Lower bounds on the time of a training step, by what limits it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vt_flax.plan.topology import Topology


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds per step that each part of a machine needs at its peak.

    Attributes:
      compute: its products, at the peak of the matrix units.
      memory: its traffic to and from HBM, at the memory's bandwidth.
      interconnect: what chips must send to each other, over all their links.
      input: its examples, at the rate of the hosts; 0 if none is given.
      moved: as `memory`, of all the program's traffic. It differs on machines with
        caches, which may hide part of it.
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
        """Lower bound in seconds: all parts overlap perfectly."""
        return max(self._bounds.values())

    @property
    def limit(self) -> str:
        """Name of the part that sets the bound."""
        return max(self._bounds, key=self._bounds.get)

    @property
    def in_turn(self) -> float:
        """Estimate in seconds: compute, memory and interconnect one after another."""
        return max(self.compute + self.moved + self.interconnect, self.input)


def roofline(
    costs: Mapping[str, Any], place: Topology, batch: int, host_rate: float = 0.0
) -> Roofline:
    """Returns the bounds of a step.

    Args:
      costs: of a device and a step, see `step_costs.read_costs`.
      place: the topology it runs on.
      batch: batch size, over all devices.
      host_rate: examples per second that each host delivers; 0 for no limit.
    """
    device = place.chip.device
    sent = sum(row["sent"] for row in costs["collectives"].values())
    moved = costs["traffic"] / device.bandwidth
    return Roofline(
        compute=2 * costs["macs"] / device.flops,
        memory=costs["given"] / device.bandwidth if device.cached else moved,
        interconnect=sent / place.interconnect if sent and place.interconnect else 0.0,
        input=batch / (host_rate * place.hosts) if host_rate else 0.0,
        moved=moved,
    )
