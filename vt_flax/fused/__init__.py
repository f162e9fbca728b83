"""Faster formulations of the networks, and the choice among them.

A formulation computes the same function from the same parameters:

- `printed`: the plain network of `nn` and `models`, as the paper and torchvision have
  it; the reference.
- `folded`: attention between pixels and tokens without key, query and value maps on the
  pixels, by XLA alone (`fused.folded`). Networks without tokens are as printed.
- `fused`: the same by Pallas kernels on TPUs, with norms from streamed moments, and
  residual blocks whose 1 x 1 convolutions contain their BatchNorm.

`auto` is the fastest on this machine: training measures it on accelerators
(`fused.selection`); on CPUs it was measured once for each network.
"""

import jax

from vt_flax.fused import folded, vt
from vt_flax.fused.bottleneck import FusedBottleneckBlock, FusedLayers, FusedStem
from vt_flax.fused.platforms import for_tpus
from vt_flax.nn.visual_transformer import VTParts

__all__ = [
    "FORMULATIONS",
    "VT_PARTS",
    "FusedBottleneckBlock",
    "FusedLayers",
    "FusedStem",
    "resolve",
]

FORMULATIONS = ("printed", "folded", "fused")

# Classes of which Visual Transformer modules are built.
VT_PARTS = {"printed": VTParts(), "folded": folded.PARTS, "fused": vt.PARTS}

# The fastest on CPUs, where it is not `printed`: networks of basic blocks by class
# (BENCHMARKS.md, "A training step on a CPU").
CPU_CHOICES = {"ResNet": "fused", "VTResNet": "fused"}


def resolve(formulation: str, network: str, bottleneck: bool) -> str:
    """Returns the formulation to compute by.

    Args:
      formulation: one of FORMULATIONS, or `auto`: the fastest measured on CPUs, and
        `printed` elsewhere, where nothing has been measured.
      network: class of the network, such as `VTResNet`.
      bottleneck: whether its blocks are bottlenecks.
    """
    if formulation != "auto":
        return formulation
    if bottleneck or for_tpus() or jax.default_backend() != "cpu":
        return "printed"
    return CPU_CHOICES.get(network, "printed")
