"""GloRe-ResNet-50: units that reason on a graph, in stage 4 (Chen et al., 2019).

Which units the printed 78.4 %, 5.2 GMACs and 30.5 M parameters belong to was found by
counting. Of 0 to 2 units behind blocks of stage 3 and 0 to 6 of stage 4, with C to
C / 8 states and C to C / 16 nodes, these are nearest::

    | units in stages 3, 4 | states, nodes | GMACs | no projections | M parameters |
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

import flax.linen as nn
import jax
import jax.numpy as jnp

from vt_flax.models.resnet import Classifier, Stage
from vt_flax.nn.layers import Layers

STAGE = 4


class GloReUnit(nn.Module):
    """Global reasoning unit: x + BN(B Z W_x), a graph convolution between projections.

    B = X W_B holds each pixel's weight in each node, V = B^T (X W_S) / HW the nodes'
    states, Z = ReLU(V + A V) W_G their states after the graph convolution. The last
    scale starts at zero: at first the unit is the identity.

    Attributes:
      layers: dtype and BatchNorm settings.
    """

    layers: Layers = Layers()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps (batch, H, W, C) to the same shape, with C / 2 states and C / 4 nodes.

        Source: Chen et al., section 3.
        """
        layers, dtype = self.layers, self.layers.dtype
        batch, height, width, channels = x.shape
        pixels = height * width
        x = x.astype(dtype)
        flat = x.reshape(batch, pixels, channels)
        states, nodes = max(1, channels // 2), max(1, channels // 4)
        projection = nn.Dense(nodes, dtype=dtype, name="projection")(flat)
        reduced = nn.Dense(states, dtype=dtype, name="states")(flat)
        graph = jnp.einsum("bpn,bps->bsn", projection, reduced / pixels)
        graph += nn.Dense(nodes, dtype=dtype, name="adjacency")(graph)
        graph = jnp.swapaxes(nn.relu(graph), 1, 2)
        graph = layers.linear(states, name="update")(graph)
        out = jnp.einsum("bpn,bns->bps", projection, graph)
        out = layers.linear(channels, name="extend")(out).reshape(x.shape)
        return x + layers.batch_norm("norm", nn.initializers.zeros)(out, train=train)


class GloReStage(Stage):
    """Residual stage with a unit behind every second block, from the first one on."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps (batch, H, W, C) to (batch, H / stride, W / stride, C')."""
        for i, block in enumerate(self.blocks(), 1):
            x = block(x, train=train)
            if i % 2 == 1:
                x = GloReUnit(block.layers, name=f"unit{i}")(x, train=train)
        return x


class GloReResNet(Classifier):
    """GloRe-ResNet-50; options as in `Classifier`."""

    @nn.nowrap
    def stage_class(self, stage: int) -> type[Stage]:
        """See `Backbone`."""
        return GloReStage if stage == STAGE else Stage
