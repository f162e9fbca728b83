"""Published peak figures of accelerator chips, and topologies of TPUs by name."""

import dataclasses
import math
import re

from vt_flax.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peak figures of a chip, of all its JAX devices together.

    Attributes:
      name: in a topology's name.
      flops: bfloat16 operations per second of its matrix units; a multiply-add is two.
      memory: bytes of HBM that programs can have.
      bandwidth: HBM bandwidth in bytes per second.
      link: bytes per second of one link to another chip, in one direction.
      links: number of links to other chips.
      host_chips: chips per host of a large slice.
      one_host: slices of up to this many chips have one host.
      source: where the figures are from.
      cached: whether caches hide part of the memory traffic that a program asks for.
      kinds: its names in JAX (`device_kind`).
      single: as `flops`, of float32 products at JAX's default precision: one bfloat16
        pass on TPUs, TF32 on GPUs.
      devices: JAX devices on the chip, which share compute, memory and bandwidth
        equally; an array on one of them cannot use the memory of another.
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
    devices: int = 1

    @property
    def device(self) -> "Chip":
        """The figures of one JAX device; the links stay those of the whole chip."""
        return dataclasses.replace(
            self,
            flops=self.flops / self.devices,
            single=self.single / self.devices,
            memory=self.memory // self.devices,
            bandwidth=self.bandwidth / self.devices,
            devices=1,
        )


GIB = 2**30
# The name of this machine, see `machine.this_machine`.
HERE = "here"
# Published: peak bfloat16 operations, HBM bandwidth, links. Links are published as the
# sum of all of them in both directions; for v4 see Jouppi et al. 2023
# (arXiv 2304.01433), Table 4. Memory is what the TPU compiler (libtpu 0.0.50) reports
# as available when a program needs more; published are 32, 16, 95, 32 and 192 GB.
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
            "v5p", 459e12, int(95.73 * GIB), 2765e9, 100e9, 6, 4, 4,
            "docs.cloud.google.com/tpu/docs/v5p",
            kinds=("TPU v5", "TPU v5p"), single=459e12,
        ),
        Chip(
            "v6e", 918e12, int(31.24 * GIB), 1638e9, 100e9, 4, 4, 8,
            "docs.cloud.google.com/tpu/docs/v6e",
            kinds=("TPU v6 lite", "TPU v6e"), single=918e12,
        ),
        # Two chiplets, each a JAX device with a TensorCore and half of the memory.
        Chip(
            "tpu7x", 2307e12, int(2 * 94.74 * GIB), 7380e9, 100e9, 6, 4, 4,
            "docs.cloud.google.com/tpu/docs/tpu7x",
            kinds=("TPU7x",), single=2307e12, devices=2,
        ),
    )
}  # fmt: skip
# Other names of the chips, in lower case.
ALIASES = {
    **dict.fromkeys(("v7x", "v7", "tpu7", "tpu_v7x", "ironwood"), "tpu7x"),
    **dict.fromkeys(("v5litepod", "v5lite", "v5_lite"), "v5e"),
    **dict.fromkeys(("v6lite", "v6_lite", "v6", "trillium"), "v6e"),
}
# By JAX's `device_kind`: dense products, from the data sheets of
# nvidia.com/en-us/data-center/{a100,l4,h100,h200}; those of the last three print
# figures with sparsity, which are twice as high.
GPUS = {
    kind: Chip(kind, flops, memory * 10**9, bandwidth, single=single)
    for kind, flops, single, memory, bandwidth in (
        ("NVIDIA H200", 989.4e12, 494.7e12, 141, 4.8e12),
        ("NVIDIA H100 80GB HBM3", 989.4e12, 494.7e12, 80, 3.35e12),
        ("NVIDIA H100 PCIe", 756e12, 378e12, 80, 2.0e12),
        ("NVIDIA A100-SXM4-80GB", 312e12, 156e12, 80, 2.039e12),
        ("NVIDIA A100 80GB PCIe", 312e12, 156e12, 80, 1.935e12),
        ("NVIDIA A100-SXM4-40GB", 312e12, 156e12, 40, 1.555e12),
        ("NVIDIA A100-PCIE-40GB", 312e12, 156e12, 40, 1.555e12),
        ("NVIDIA L4", 121e12, 60e12, 24, 300e9),
    )
}
CHIP_OF_KIND = GPUS | {kind: chip for chip in CHIPS.values() for kind in chip.kinds}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips of one kind in a grid or torus.

    Attributes:
      name: such as `v5e:16x16`.
      chip: kind of the chips.
      shape: number of chips along each axis.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]

    @property
    def chips(self) -> int:
        """Number of chips."""
        return math.prod(self.shape)

    @property
    def devices(self) -> int:
        """Number of JAX devices."""
        return self.chips * self.chip.devices

    @property
    def hosts(self) -> int:
        """Number of hosts."""
        return (
            1
            if self.chips <= self.chip.one_host
            else self.chips // self.chip.host_chips
        )

    @property
    def interconnect(self) -> float:
        """Bytes per second that a chip can send over all of its links here.

        Two links along an axis, one to each side; a single one along an axis of two
        chips.
        """
        used = sum(min(2, length - 1) for length in self.shape)
        return self.chip.link * min(used, self.chip.links)

    def batch_size(self, per_chip: int) -> int:
        """Returns the batch size of all chips.

        Raises:
          UserError: if a chip's devices cannot share its examples equally.
        """
        if per_chip % self.chip.devices:
            raise UserError(
                f"--chip {per_chip}: a {self.chip.name} chip is {self.chip.devices} "
                f"JAX devices: write a multiple of {self.chip.devices}"
            )
        return per_chip * self.chips


def parse_topology(name: str) -> Topology:
    """Returns the topology of a name, which libtpu may still not know.

    Raises:
      UserError: if it is not of the form CHIP:AxB, the chip is not in the table, or a
        side has no chips.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+){0,2})", name)
    if not match:
        raise UserError(
            f"--topology {name}: write CHIP:AxB or CHIP:AxBxC, as v5e:16x16"
        )
    chip, sides = match.groups()
    if chip not in CHIPS:
        known = ALIASES.get(chip.lower(), chip.lower())
        suggestion = (
            f"; did you mean {known}:{sides}?"
            if known in CHIPS
            else nearest(chip, CHIPS)
        )
        raise UserError(
            f"--topology {name}: there is no chip {chip!r} in the table{suggestion}"
        )
    shape = tuple(map(int, sides.split("x")))
    if min(shape) < 1:
        raise UserError(f"--topology {name}: each side must be at least 1")
    return Topology(name, CHIPS[chip], shape)
