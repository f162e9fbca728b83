"""Collectives of a compiled program, and the bytes that chips send for them."""

import collections
import re
from collections.abc import Hashable, Sequence

import numpy as np

from vt_flax.plan.hlo import Instruction, Program

KINDS = (
    *("all-reduce", "all-gather", "reduce-scatter", "collective-permute"),
    "all-to-all",
)
# Name of a TPU's fusion that reduces an array and keeps one shard of it.
SCATTERING = "all-reduce-scatter"


def find_collectives(
    program: Program, chips: Sequence[Hashable]
) -> dict[str, dict[str, float]]:
    """Sums the collectives of a program by kind.

    An asynchronous collective counts once, also where TPUs fuse its parts (a chain)
    with other computations.

    Args:
      program: as compiled for one of the devices.
      chips: chip of each device of the program, in its order.

    Returns:
      For each of KINDS that there is: `count` of its runs, `bytes` of the whole arrays
      that are reduced, gathered, scattered or permuted, and bytes `sent` to other chips
      by the busiest chip, at least.
    """
    sums: dict[str, dict[str, float]] = {}
    chains = set()
    for outer, scope, name in program.executed():
        members = program.fused(outer) if outer.opcode == "fusion" else [(outer, scope)]
        for one, inside in members:
            kind = one.opcode.removesuffix("-start")
            chain = re.search(r"chain_id=\"\d+\"", one.rest)
            if kind not in KINDS or (chain and chain[0] in chains):
                continue
            if chain:
                chains.add(chain[0])
            groups = _groups(one, len(chips))
            operands = (inside[x].arrays for x in one.operands if x in inside)
            size = sum(array.bytes for arrays in operands for array in arrays)
            if kind == "all-gather":
                size *= groups.shape[1]
            if outer.opcode == "fusion" and outer.calls.startswith(SCATTERING):
                kind = "reduce-scatter"
            row = sums.setdefault(kind, {"count": 0, "bytes": 0, "sent": 0})
            row["count"] += program.runs[name]
            row["bytes"] += program.runs[name] * size
            row["sent"] += program.runs[name] * _sent(kind, size, one, chips, groups)
    return sums


def _sent(
    kind: str,
    size: int,
    one: Instruction,
    chips: Sequence[Hashable],
    groups: np.ndarray,
) -> float:
    """Returns a lower bound of the bytes that the busiest chip sends to others.

    That is what rings send: to scatter or gather an array, each of n chips sends n - 1
    of its n shards; an all-reduce is both in turn. Devices of a chip first reduce, or
    share, among themselves.
    """
    sent: dict[Hashable, float] = collections.Counter()
    if kind == "collective-permute":
        pairs = one.rest.partition("source_target_pairs={")[2].partition("}}")[0]
        for source, target in re.findall(r"(\d+),(\d+)", pairs):
            source, target = chips[int(source)], chips[int(target)]
            sent[source] += size * (source != target)
        return max(sent.values(), default=0)
    for group in groups:
        members = collections.Counter(chips[device] for device in group)
        for chip, devices in members.items():
            if kind == "all-to-all":  # of an array for each device
                sent[chip] += devices * size * (1 - devices / len(group))
            else:
                share = (len(members) - 1) / len(members)
                sent[chip] += size * share * (2 if kind == "all-reduce" else 1)
    return max(sent.values())


def _groups(one: Instruction, devices: int) -> np.ndarray:
    """Returns the device numbers of a collective's groups, (groups, devices)."""
    rest = one.rest
    # Axes of a mesh: replica_groups=mesh['a'=4,'b'=2] {'a'}, or parts: {'a':(1)2}.
    if match := re.search(
        r"replica_groups=(?:\w+)?mesh\[([^\]]*)\]\s*\{([^}]*)\}", rest
    ):
        sizes = {k: int(v) for k, v in re.findall(r"'(\w+)'=(\d+)", match[1])}
        # Each axis in three parts, of which the middle one is in the group.
        parts = {name: (1, 1, size) for name, size in sizes.items()}
        for name, before, part in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", match[2]):
            before, part = int(before or 1), int(part or sizes[name])
            parts[name] = (before, part, sizes[name] // (before * part))
        shape = [length for three in parts.values() for length in three]
        middle = list(range(1, len(shape), 3))
        numbers = np.arange(devices).reshape(shape)
        numbers = np.moveaxis(numbers, middle, range(-len(middle), 0))
        return numbers.reshape(-1, np.prod([shape[i] for i in middle]))
    # Numbered: replica_groups=[4,2]<=[2,4]T(1,0), or listed: {{0,1},{2,3}}.
    if match := re.search(
        r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest
    ):
        shape = list(map(int, match[3].split(",")))
        order = map(int, match[4].split(",")) if match[4] else range(len(shape))
        numbers = np.arange(devices).reshape(shape).transpose(list(order))
        return numbers.reshape(int(match[1]), int(match[2]))
    if match := re.search(r"replica_groups=\{(\{[\d,{}]*\})\}", rest):
        groups = re.findall(r"\{([\d,]+)\}", match[1])
        return np.asarray([list(map(int, group.split(","))) for group in groups])
    return np.arange(devices)[None]
