"""Accelerator chips with their published figures, and TPU topologies by name."""

import dataclasses
import math
import re

from vt_flax.errors import UserError, nearest

GIB = 2**30
# Name of the topology of this machine, see `machine.this_machine`.
HERE = "here"
# Chips on a host of a slice that has several hosts.
CHIPS_PER_HOST = 4


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peak figures of a chip, of all its JAX devices together.

    Attributes:
      name: name in topologies.
      flops: FLOP/s of bfloat16 matrix products; a multiply-add is two.
      memory: bytes of HBM that programs can use.
      bandwidth: bytes per second to and from HBM.
      link: bytes per second of one link to another chip, in one direction.
      one_host: largest number of chips of a slice that has a single host.
      source: source of the figures.
      kinds: names in JAX (`device_kind`).
      float32_flops: FLOP/s of float32 products at JAX's default precision (TF32 on
        GPUs); 0 if as `flops`, as on TPUs, which compute them in one bfloat16 pass.
      devices: JAX devices of the chip, each with an equal share of compute, memory and
        bandwidth.
      cached: whether caches hide part of a program's memory traffic.
    """

    name: str
    flops: float
    memory: int
    bandwidth: float
    link: float = 0.0
    one_host: int = 1
    source: str = ""
    kinds: tuple[str, ...] = ()
    float32_flops: float = 0.0
    devices: int = 1
    cached: bool = False

    @property
    def device(self) -> "Chip":
        """Figures of one JAX device; the links stay those of the whole chip."""
        return dataclasses.replace(
            self,
            flops=self.flops / self.devices,
            float32_flops=self.float32_flops / self.devices,
            memory=self.memory // self.devices,
            bandwidth=self.bandwidth / self.devices,
            devices=1,
        )


# The bandwidth of links is published as the sum over all links and both directions; for
# v4 see Jouppi et al. 2023 (arXiv 2304.01433), table 4. The memory is what the TPU
# compiler (libtpu 0.0.50) reports as available; published are 32, 16, 95, 32 and 192
# GB. A tpu7x consists of two chiplets, each of which is a JAX device.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 275e12, int(30.75 * GIB), 1200e9, 50e9, 4,
             "docs.cloud.google.com/tpu/docs/v4, arXiv 2304.01433", ("TPU v4",)),
        Chip("v5e", 197e12, int(15.75 * GIB), 819e9, 50e9, 8,
             "docs.cloud.google.com/tpu/docs/v5e", ("TPU v5 lite", "TPU v5e")),
        Chip("v5p", 459e12, int(95.73 * GIB), 2765e9, 100e9, 4,
             "docs.cloud.google.com/tpu/docs/v5p", ("TPU v5", "TPU v5p")),
        Chip("v6e", 918e12, int(31.24 * GIB), 1638e9, 100e9, 8,
             "docs.cloud.google.com/tpu/docs/v6e", ("TPU v6 lite", "TPU v6e")),
        Chip("tpu7x", 2307e12, int(2 * 94.74 * GIB), 7380e9, 100e9, 4,
             "docs.cloud.google.com/tpu/docs/tpu7x", ("TPU7x",), devices=2),
    )
}  # fmt: skip
# Dense products, from the data sheets of nvidia.com/en-us/data-center/{a100,l4,h100,
# h200}; those of the last three list figures with sparsity, which are twice as high.
GPUS = [
    Chip(kind, flops, gigabytes * 10**9, bandwidth, kinds=(kind,), float32_flops=tf32)
    for kind, flops, tf32, gigabytes, bandwidth in (
        ("NVIDIA H200", 989.4e12, 494.7e12, 141, 4.8e12),
        ("NVIDIA H100 80GB HBM3", 989.4e12, 494.7e12, 80, 3.35e12),
        ("NVIDIA H100 PCIe", 756e12, 378e12, 80, 2.0e12),
        ("NVIDIA A100-SXM4-80GB", 312e12, 156e12, 80, 2.039e12),
        ("NVIDIA A100 80GB PCIe", 312e12, 156e12, 80, 1.935e12),
        ("NVIDIA A100-SXM4-40GB", 312e12, 156e12, 40, 1.555e12),
        ("NVIDIA A100-PCIE-40GB", 312e12, 156e12, 40, 1.555e12),
        ("NVIDIA L4", 121e12, 60e12, 24, 300e9),
    )
]
CHIP_OF_KIND = {kind: chip for chip in (*CHIPS.values(), *GPUS) for kind in chip.kinds}


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
        single = self.chips <= self.chip.one_host
        return 1 if single else self.chips // CHIPS_PER_HOST

    @property
    def interconnect(self) -> float:
        """Bytes per second that a chip can send over all of its links.

        A chip has two links along an axis, and a single one along an axis of two chips.
        """
        return self.chip.link * sum(min(2, length - 1) for length in self.shape)

    def batch_size(self, per_chip: int) -> int:
        """Returns the batch size for a number of examples per chip.

        Raises:
          UserError: if the devices of a chip cannot share its examples equally.
        """
        if per_chip % self.chip.devices:
            raise UserError(
                f"--chip {per_chip}: a {self.chip.name} chip is {self.chip.devices} "
                f"JAX devices: write a multiple of {self.chip.devices}"
            )
        return per_chip * self.chips


def parse_topology(name: str) -> Topology:
    """Returns the topology of a name; libtpu may still reject it.

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
        raise UserError(
            f"--topology {name}: there is no chip {chip!r} in the table"
            f"{nearest(chip, CHIPS)}"
        )
    shape = tuple(map(int, sides.split("x")))
    if min(shape) < 1:
        raise UserError(f"--topology {name}: each side must be at least 1")
    return Topology(name, CHIPS[chip], shape)
