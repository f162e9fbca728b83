"""GloRe-ResNet-50: units that reason on a graph, in stage 4 (Chen et al., 2019).

Three units in stage 4 with C / 2 states and C / 4 nodes have the printed 30.5 M
parameters, and the printed 5.2 GMACs if the two products between pixels and nodes are
left out. Of other numbers of units, states and nodes none fits both [fit].

The units stand behind blocks 1, 3 and 5, as in the authors' networks for video. The
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
