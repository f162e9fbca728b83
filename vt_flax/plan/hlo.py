"""Compiled programs parsed from XLA's text: instructions, shapes, loops."""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator

# Bits of an element; other types have them in their names, such as `bf16`.
BITS = {"pred": 8, "token": 0, "opaque": 0, "c64": 64, "c128": 128}
ARRAY = re.compile(r"([a-z]\w*)\[([^\]]*)\](?:\{([^}]*)\})?")
INSTRUCTION = re.compile(r"\s+(ROOT )?%([^\s=]+) = ")
COMPUTATION = re.compile(r"(ENTRY )?%(\S+) \(.*\{$")
# Instructions that run another computation once; `call-start` runs it on another core,
# such as the SparseCores of a tpu7x.
CALLS = ("call", "async-start", "call-start")
CALLED = re.compile(r"\b(?:calls|to_apply|body)=%([^\s,)}]+)")
BRANCHES = re.compile(r"\b(?:branch_computations=\{([^}]*)\}|\w+_computation=(%\S+))")


@dataclasses.dataclass(frozen=True)
class Array:
    """An array of a shape.

    Attributes:
      bytes: of its elements.
      padded: bytes including the padding of its layout's tiles.
      in_hbm: whether it lies in HBM, not in on-chip memory.
    """

    bytes: int
    padded: int
    in_hbm: bool


@dataclasses.dataclass(frozen=True)
class Instruction:
    """An instruction.

    Attributes:
      name: its name in its computation.
      opcode: such as `fusion`.
      shape: of its result, as text: an array or a tuple.
      operands: names of its operands; the argument of a parameter or a constant.
      rest: its attributes, as text.
      root: whether it is the result of its computation.
    """

    name: str
    opcode: str
    shape: str
    operands: tuple[str, ...]
    rest: str
    root: bool

    @functools.cached_property
    def arrays(self) -> tuple[Array, ...]:
        """Arrays of its result; a tuple is flattened."""
        return tuple(map(_array, ARRAY.findall(self.shape)))

    @property
    def calls(self) -> str:
        """Name of the computation that it runs."""
        return CALLED.search(self.rest)[1]


class Program:
    """A compiled program.

    Args:
      text: `as_text()` of a compiled function.

    Attributes:
      computations: instructions by name, by computation.
      entry: the computation that is run.
      runs: number of runs of each computation in a run of the entry, which includes
        called computations, all branches of a conditional, and bodies of loops, but
        not the computations of fusions.
      unknown: number of loops of unknown length; their bodies count once.
    """

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        inside: dict[str, Instruction] = {}
        for line in text.splitlines():
            if line.startswith(" "):
                instruction = _instruction(line)
                if instruction:
                    inside[instruction.name] = instruction
            elif match := COMPUTATION.match(line):
                inside = self.computations[match[2]] = {}
                self.entry = match[2] if match[1] else self.entry
        self.runs: dict[str, int] = collections.Counter()
        self.unknown = 0
        self._count(self.entry, 1)

    def _count(self, name: str, times: int) -> None:
        self.runs[name] += times
        for one in self.computations[name].values():
            if one.opcode == "while":
                length = self._trip_count(one)
                if length is None:
                    self.unknown += 1
                    length = 1
                self._count(one.calls, times * length)
            elif one.opcode == "conditional":
                for branch in _branches(one):
                    self._count(branch, times)
            elif one.opcode in CALLS:
                self._count(one.calls, times)

    def _trip_count(self, loop: Instruction) -> int | None:
        """Returns the trip count of a loop; None if unknown.

        XLA writes it down, or the condition compares the counter, which JAX starts at
        0, with a constant.
        """
        if match := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
            return int(match[1])
        condition = re.search(r"condition=%([^\s,]+)", loop.rest)
        inside = self.computations[condition[1]].values()
        (root,) = (one for one in inside if one.root)
        if root.opcode == "fusion":
            (root,) = (one for one, _ in self.fused(root) if one.root)
        limits = [
            one.operands[0]
            for one in inside
            if one.opcode == "constant" and re.match(r"[su]\d+\[\]", one.shape)
        ]
        if "direction=LT" in root.rest and len(limits) == 1:
            return int(limits[0])
        return None

    def executed(self) -> Iterator[tuple[Instruction, dict[str, Instruction], str]]:
        """Yields each instruction that is run, its computation, and that one's name."""
        for name in self.runs:
            inside = self.computations[name]
            for one in inside.values():
                yield one, inside, name

    def fused(
        self, fusion: Instruction
    ) -> Iterator[tuple[Instruction, dict[str, Instruction]]]:
        """Yields each instruction in a fusion and its computation, nested ones too."""
        inside = self.computations[fusion.calls]
        for one in inside.values():
            yield one, inside
            if one.opcode == "fusion":
                yield from self.fused(one)


def _instruction(line: str) -> Instruction | None:
    match = INSTRUCTION.match(line)
    if not match:
        return None
    start = match.end()
    end = _closing(line, start) if line[start] == "(" else line.index(" ", start)
    shape = line[start:end]
    opening = line.index("(", end)
    opcode = line[end:opening].strip()
    closing = _closing(line, opening)
    inside = line[opening + 1 : closing - 1]
    names = re.findall(r"%([^\s,()]+)", inside)
    return Instruction(
        match[2],
        opcode,
        shape,
        tuple(names or [inside]),
        line[closing:],
        bool(match[1]),
    )


def _closing(line: str, opening: int) -> int:
    """Returns the index after the bracket that closes one."""
    depth = 0
    for match in re.compile(r"[()]").finditer(line, opening):
        depth += 1 if match[0] == "(" else -1
        if not depth:
            return match.end()
    return len(line)  # a constant that goes on in the next line


def _branches(instruction: Instruction) -> list[str]:
    found = "".join(map("".join, BRANCHES.findall(instruction.rest)))
    return re.findall(r"%([^\s,}]+)", found)


def _array(found: tuple[str, str, str]) -> Array:
    kind, dimensions, layout = found
    # A bounded dimension such as `<=8` counts with its bound.
    shape = [int(d.strip("<= ")) for d in dimensions.split(",") if d]
    bits = BITS[kind] if kind in BITS else int(re.search(r"\d+", kind)[0])
    order, _, place = layout.partition(":")
    padded = shape
    if tile := re.search(r"T\(([\d,]+)\)", place):
        # Dimensions from the outermost to the innermost in memory.
        padded = [shape[int(d)] for d in reversed(order.split(",")) if d]
        sizes = list(map(int, tile[1].split(",")))
        padded = [1] * (len(sizes) - len(padded)) + padded
        for i, size in enumerate(reversed(sizes), 1):
            padded[-i] = math.ceil(padded[-i] / size) * size
    return Array(
        math.prod(shape) * bits // 8,
        math.prod(padded) * bits // 8,
        not re.search(r"S\([1-9]", place),
    )
