"""What devices tell each other in a compiled program."""

import dataclasses
import math
import re
from collections.abc import Sequence

from vt_flax.analysis.hlo import Instruction, Program

KINDS = (
    *("all-reduce", "all-gather", "reduce-scatter", "collective-permute"),
    "all-to-all",
)
TOTALS = ("count", "looped", "bytes", "sent")
# A fusion in which TPUs add up and keep a part at once.
SCATTERING = "all-reduce-scatter"


@dataclasses.dataclass(frozen=True)
class Collective:
    """An instruction by which devices exchange data.

    Attributes:
      kind: one of KINDS.
      times: how often it runs in a run of the program.
      bytes: of the whole array that is added up, gathered, scattered or passed on.
      group: how many devices take part with each other.
      loop: whether it stands in the body of a loop.
    """

    kind: str
    times: int
    bytes: int
    group: int
    loop: bool

    @property
    def sent(self) -> float:
        """Bytes that a device must send each time, at least.

        As rings do it, which is the least there can be: an array is scattered or
        gathered by n devices when each has sent n - 1 of its n parts; adding up is
        both, one after the other.
        """
        if self.kind == "collective-permute":
            return self.bytes
        share = (self.group - 1) / self.group
        return self.bytes * share * (2 if self.kind == "all-reduce" else 1)


def find_collectives(program: Program, devices: int) -> list[Collective]:
    """Returns the collectives of a program.

    One that is started and finished apart is one, also where TPUs fuse its parts with
    what is computed meanwhile, as a chain; so is one over many arrays at a time.

    Args:
      program: as compiled for one of the devices.
      devices: how many it runs on.
    """
    found, seen = [], set()
    for outer, beside, name in program.executed():
        parts = [(outer, beside)]
        if outer.opcode == "fusion":
            parts = list(program.fused(outer))
        for one, inside in parts:
            kind = one.opcode.removesuffix("-start")
            chain = re.search(r"chain_id=\"\d+\"", one.rest)
            if kind not in KINDS or (chain and chain[0] in seen):
                continue
            if chain:
                seen.add(chain[0])
            group = _group(one, devices)
            given = (inside[x].arrays for x in one.operands if x in inside)
            size = sum(array.bytes for arrays in given for array in arrays)
            if kind == "all-gather":
                size *= group
            if outer.opcode == "fusion" and outer.calls.startswith(SCATTERING):
                kind = "reduce-scatter"
            times, looped = program.runs[name], name in program.looped
            found.append(Collective(kind, times, size, group, looped))
    return found


def totals(found: Sequence[Collective]) -> dict[str, dict[str, float]]:
    """Sums collectives by kind, with all their runs.

    Returns:
      `count` of runs; of them `looped`, those in loops; `bytes` and `sent` of them all.
    """
    sums: dict[str, dict[str, float]] = {}
    for one in found:
        row = sums.setdefault(one.kind, dict.fromkeys(TOTALS, 0))
        row["count"] += one.times
        row["looped"] += one.times * one.loop
        row["bytes"] += one.times * one.bytes
        row["sent"] += one.times * one.sent
    return sums


def _group(one: Instruction, devices: int) -> int:
    """Returns how many devices are in a group of a collective."""
    rest = one.rest
    # Axes of a mesh: replica_groups=mesh['a'=4,'b'=2] {'a'}, or parts: {'a':(1)2}.
    if match := re.search(
        r"replica_groups=(?:\w+)?mesh\[([^\]]*)\]\s*\{([^}]*)\}", rest
    ):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", match[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    # Numbered: replica_groups=[4,2]<=[8], or listed: replica_groups={{0,1},{2,3}}.
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", rest):
        return int(match[1])
    if match := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
        return match[1].count(",") + 1
    return devices
