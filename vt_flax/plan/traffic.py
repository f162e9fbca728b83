"""Bytes that a compiled program reads from and writes to a device's HBM."""

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
