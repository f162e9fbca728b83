"""Bytes that a compiled program moves: to and from HBM, and between chips."""

import collections
import re
from collections.abc import Hashable, Sequence

import numpy as np

from vt_flax.plan.hlo import CALLS, Array, Instruction, Program

# Instructions that move nothing, or whose called computations are counted instead.
STILL = (
    *("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all"),
    *("while", "conditional", *CALLS, "call-update", "partition-id", "replica-id"),
)
# Kernels that only name memory.
STILL_KERNELS = ("AllocateBuffer", "ConcatBitcast")
SLICES = ("slice", "dynamic-slice", "gather")
# Instructions inside a fusion through which an array is read as it is.
THROUGH = ("bitcast", "reshape")
# Kinds of collectives.
KINDS = (
    *("all-reduce", "all-gather", "reduce-scatter", "collective-permute"),
    "all-to-all",
)
# Name of a TPU's fusion that reduces an array and keeps one shard of it.
SCATTERING = "all-reduce-scatter"


def memory_traffic(program: Program) -> int:
    """Returns the bytes that one run of a program moves to and from HBM.

    Every instruction reads its operands and writes its results once, padded to tiles; a
    fusion is one instruction. Slices count only what they read of an array, updates in
    place only what they write. On-chip memory (VMEM) does not count. Bodies of loops
    count as often as they run. The caches of CPUs and GPUs are not modeled.
    """
    return sum(
        program.runs[name] * _moved(program, one, inside)
        for one, inside, name in program.executed()
        if one.opcode not in STILL and not one.opcode.endswith("-done")
    )


def _moved(program: Program, one: Instruction, inside: dict[str, Instruction]) -> int:
    operands = [inside[name].arrays for name in one.operands if name in inside]
    if one.opcode == "fusion":
        fused = program.computations[one.calls]
        read = sum(
            _read(program, fused, i, arrays) for i, arrays in enumerate(operands)
        )
        return read + _written(one, fused)
    if one.opcode == "copy-start":  # returns the copy, the original and a flag
        return _hbm_bytes(one.arrays[:1]) + _hbm_bytes(operands[0])
    if one.opcode == "slice-start":  # returns the original, the slice and a flag
        (slice_,) = one.arrays[len(operands[0]) : len(operands[0]) + 1]
        return _hbm_bytes([slice_]) + slice_.padded * operands[0][0].in_hbm
    if one.opcode == "custom-call" and any(k in one.rest for k in STILL_KERNELS):
        return 0
    if one.opcode in SLICES:
        return _hbm_bytes(one.arrays) + one.arrays[0].padded * operands[0][0].in_hbm
    if one.opcode == "dynamic-update-slice":
        return operands[1][0].padded * one.arrays[0].in_hbm + _hbm_bytes(operands[1])
    if one.opcode.endswith("-start"):
        # A collective: its result lists the output beside the input.
        return 2 * sum(map(_hbm_bytes, operands))
    return _hbm_bytes(one.arrays) + sum(map(_hbm_bytes, operands))


def _hbm_bytes(arrays: tuple[Array, ...] | list[Array]) -> int:
    return sum(array.padded for array in arrays if array.in_hbm)


def _read(
    program: Program,
    fused: dict[str, Instruction],
    number: int,
    arrays: tuple[Array, ...],
) -> int:
    """Returns the bytes of a fusion's operand that it reads."""
    whole = _hbm_bytes(arrays)
    if not whole:
        return 0
    read, todo = 0, [_parameter(fused, number)]
    while todo:
        name = todo.pop()
        if fused[name].root:
            return whole
        for one in fused.values():
            if name not in one.operands:
                continue
            first = one.operands[0] == name
            if one.opcode in THROUGH:
                todo.append(one.name)
            elif one.opcode in SLICES and first:
                read += one.arrays[0].padded
            elif one.opcode == "dynamic-update-slice" and first:
                continue
            elif one.opcode == "fusion":
                nested = program.computations[one.calls]
                place = one.operands.index(name)
                if _goes_through(nested, place):
                    todo.append(one.name)
                else:
                    read += _read(program, nested, place, arrays)
            else:
                return whole
    return min(read, whole)


def _goes_through(fused: dict[str, Instruction], number: int) -> bool:
    """Returns whether a fusion returns an operand unchanged."""
    (one,) = (one for one in fused.values() if one.root)
    while one.opcode in THROUGH:
        one = fused[one.operands[0]]
    return one.name == _parameter(fused, number)


def _parameter(fused: dict[str, Instruction], number: int) -> str:
    return next(
        one.name
        for one in fused.values()
        if one.opcode == "parameter" and one.operands == (str(number),)
    )


def _written(fusion: Instruction, fused: dict[str, Instruction]) -> int:
    """Returns the bytes that a fusion writes: results, or slices updated in place."""
    (root,) = (one for one in fused.values() if one.root)
    results = root.operands if root.opcode == "tuple" else (root.name,)
    if len(results) != len(fusion.arrays):
        return _hbm_bytes(fusion.arrays)
    total = 0
    for name, array in zip(results, fusion.arrays, strict=True):
        one = fused[name]
        while one.opcode in THROUGH:
            one = fused[one.operands[0]]
        if one.opcode == "dynamic-update-slice":
            total += fused[one.operands[1]].arrays[0].padded * array.in_hbm
        else:
            total += array.padded * array.in_hbm
    return total


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
