"""Chips and what is published of them, and topologies of TPUs by their names."""

import dataclasses
import math
import re

from vt_flax.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a chip can do at best.

    Attributes:
      name: as people call it.
      flops: bfloat16 operations a second of its matrix units; a multiply-add is two.
      memory: bytes of its main memory that a program can have.
      bandwidth: bytes a second of that memory.
      link: bytes a second that one link to another chip carries, in one direction.
      links: how many links it has.
      host_chips: chips of a host of a large slice.
      one_host: slices of at most so many chips have one host.
      source: where the figures are from.
      cached: whether a cache stands before its memory, so that a program may move less
        than it says.
      kinds: what JAX calls it, its `device_kind`.
      single: as `flops`, of what JAX makes of float32 products by default: a pass of
        bfloat16 on TPUs, TF32 on GPUs.
    """

    name: str
    flops: float
    memory: int
    bandwidth: float
    link: float = 0.0
    links: int = 0
    host_chips: int = 1
    one_host: int = 1
    source: str = ""
    cached: bool = False
    kinds: tuple[str, ...] = ()
    single: float = 0.0


GIB = 2**30
# The name of the machine that is here, of which `machine` knows.
HERE = "here"
# Published: peak bfloat16 operations, bandwidth, links. Links are published as the sum
# of all, in both directions; for v4 see Jouppi et al. 2023 (arXiv 2304.01433), Table 4.
# Memory is what the TPU compiler (libtpu 0.0.42) says it has when a program needs more;
# published are 32, 16, 95 and 32 GB.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            "v4", 275e12, int(30.75 * GIB), 1200e9, 50e9, 6, 4, 4,
            "docs.cloud.google.com/tpu/docs/v4, arXiv 2304.01433",
            kinds=("TPU v4",), single=275e12,
        ),
        Chip(
            "v5e", 197e12, int(15.75 * GIB), 819e9, 50e9, 4, 4, 8,
            "docs.cloud.google.com/tpu/docs/v5e",
            kinds=("TPU v5 lite", "TPU v5e"), single=197e12,
        ),
        Chip(
            "v5p", 459e12, int(95.74 * GIB), 2765e9, 100e9, 6, 4, 4,
            "docs.cloud.google.com/tpu/docs/v5p",
            kinds=("TPU v5", "TPU v5p"), single=459e12,
        ),
        Chip(
            "v6e", 918e12, int(31.25 * GIB), 1638e9, 100e9, 4, 4, 8,
            "docs.cloud.google.com/tpu/docs/v6e",
            kinds=("TPU v6 lite", "TPU v6e"), single=918e12,
        ),
    )
}  # fmt: skip
# Dense products, from the data sheets of nvidia.com/en-us/data-center/{a100,l4,h100,
# h200}; those of the last three print figures with sparsity, which are twice as high. A
# GPU reaches the others by a switch: one link of all its bandwidth.
GPUS = (
    Chip(
        "H200", 989.4e12, 141 * 10**9, 4.8e12, 450e9, 1,
        kinds=("NVIDIA H200",), single=494.7e12,
    ),
    Chip(
        "H100", 989.4e12, 80 * 10**9, 3.35e12, 450e9, 1,
        kinds=("NVIDIA H100 80GB HBM3",), single=494.7e12,
    ),
    Chip(
        "H100 PCIe", 756e12, 80 * 10**9, 2.0e12,
        kinds=("NVIDIA H100 PCIe",), single=378e12,
    ),
    Chip(
        "A100 80GB", 312e12, 80 * 10**9, 2.039e12, 300e9, 1,
        kinds=("NVIDIA A100-SXM4-80GB",), single=156e12,
    ),
    Chip(
        "A100 80GB PCIe", 312e12, 80 * 10**9, 1.935e12,
        kinds=("NVIDIA A100 80GB PCIe",), single=156e12,
    ),
    Chip(
        "A100 40GB", 312e12, 40 * 10**9, 1.555e12, 300e9, 1,
        kinds=("NVIDIA A100-SXM4-40GB",), single=156e12,
    ),
    Chip(
        "A100 40GB PCIe", 312e12, 40 * 10**9, 1.555e12,
        kinds=("NVIDIA A100-PCIE-40GB",), single=156e12,
    ),
    Chip("L4", 121e12, 24 * 10**9, 300e9, kinds=("NVIDIA L4",), single=60e12),
)  # fmt: skip
OF_KIND = {kind: chip for chip in (*CHIPS.values(), *GPUS) for kind in chip.kinds}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips of a kind, joined to a grid or torus.

    Attributes:
      name: such as `v5e:16x16`.
      chip: the kind.
      shape: chips along each axis.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]

    @property
    def chips(self) -> int:
        """How many there are."""
        return math.prod(self.shape)

    @property
    def hosts(self) -> int:
        """How many hosts they have."""
        return (
            1
            if self.chips <= self.chip.one_host
            else self.chips // self.chip.host_chips
        )

    @property
    def interconnect(self) -> float:
        """Bytes a second that a chip can send over all the links that it has here.

        Two along an axis, to both sides; along one of two chips a single one.
        """
        used = sum(min(2, length - 1) for length in self.shape)
        return self.chip.link * min(used, self.chip.links)


def parse_topology(name: str) -> Topology:
    """Returns the topology of a name; whether there is such a one libtpu knows.

    Raises:
      UserError: if it is none, a side of it has no chips, or the chip is not in the
        table.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+){0,2})", name)
    if not match:
        raise UserError(
            f"--topology {name}: write CHIP:AxB or CHIP:AxBxC, as v5e:16x16"
        )
    if match[1] not in CHIPS:
        raise UserError(
            f"--topology {name}: there is no chip {match[1]!r} in the table"
            f"{nearest(match[1], CHIPS)}"
        )
    shape = tuple(map(int, match[2].split("x")))
    if min(shape) < 1:
        raise UserError(f"--topology {name}: each side must be at least 1")
    return Topology(name, CHIPS[match[1]], shape)
