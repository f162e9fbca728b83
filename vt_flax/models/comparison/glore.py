"""GloRe-ResNet-50: units that reason on a graph, in stage 4 (Chen et al., 2019).

Which units the printed 78.4 %, 5.2 GMACs and 30.5 M parameters belong to was found by
counting. Of 0 to 2 units behind blocks of stage 3 and 0 to 6 of stage 4, with C to
C / 8 states and C to C / 16 nodes, these are nearest:

| units in stages 3, 4 | states, nodes | GMACs | without projections | M parameters |
|---|---|---|---|---|
| 0, 3 | C / 2, C / 4 | 5.316 | 5.162 | 30.48 |
| 2, 3 | C / 2, C / 16 | 5.307 | 5.242 | 30.40 |
| 2, 6 | C / 4, C / 8 | 5.298 | 5.195 | 30.37 |

The first alone rounds to both printed figures, the MACs without the two products by
which the graph's nodes are read from the pixels and written back: counting them, as
everywhere here, gives 2.2 % more. It is also the one of the table beside the authors'
code: three units in their res4 78.4 %, two more in res3 78.2 %.

Left open, or done otherwise: the units stand behind blocks 1, 3 and 5, as in the
authors' networks for video; those are pre-activated, this one is a plain ResNet. The
adjacency is added, V + A V, as in their code, where the paper writes (I - A) V: A is
learned. Nodes are means over the pixels, not sums, so that any image size will do. The
last normalization has the network's epsilon; theirs is 1e-4 [choice].
"""

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from vt_flax.models.resnet import BlockParts, ResNet
from vt_flax.nn.layers import Linear
from vt_flax.nn.norm import Normalization

STAGE = 4


class GloReUnit(nn.Module):
    """x + BN(B Z W_x): features of all pixels reason as the nodes of a graph.

    B = X W_B gives each pixel's share in each node, V = B^T (X W_S) / HW the nodes'
    states, Z = ReLU(V + A V) W_G their states after the graph convolution. The last
    scale starts at zero: at first the unit is the identity.

    Attributes:
      norm: batch normalisation.
      dtype: type of the computation.
    """

    norm: Normalization = Normalization()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps (batch, H, W, C) to the same shape, with C / 2 states and C / 4 nodes.

        Source: Chen et al., section 3.
        """
        chex.assert_rank(x, 4)
        batch, height, width, channels = x.shape
        pixels = height * width
        x = x.astype(self.dtype)
        flat = x.reshape(batch, pixels, channels)
        states, nodes = max(1, channels // 2), max(1, channels // 4)
        shares = nn.Dense(nodes, dtype=self.dtype, name="shares")(flat)
        reduced = nn.Dense(states, dtype=self.dtype, name="states")(flat)
        graph = jnp.einsum("bpn,bps->bsn", shares, reduced / pixels)
        graph += nn.Dense(nodes, dtype=self.dtype, name="adjacency")(graph)
        graph = jnp.swapaxes(nn.relu(graph), 1, 2)
        graph = Linear(states, dtype=self.dtype, name="update")(graph)
        out = jnp.einsum("bpn,bns->bps", shares, graph)
        out = Linear(channels, dtype=self.dtype, name="extend")(out)
        last = self.norm.layer("norm", nn.initializers.zeros)
        return x + last(out.reshape(x.shape), train=train)


class GloReResNet(ResNet):
    """GloRe-ResNet-50; options as in `Classifier`."""

    @nn.nowrap
    def block_parts(self, stage: int) -> BlockParts:
        """Returns the parts of a stage: in stage 4, units behind every second block."""
        if stage != STAGE:
            return BlockParts()
        behind = range(1, self.stage_sizes[STAGE - 2] + 1, 2)
        return BlockParts(unit=GloReUnit, unit_behind=behind)
