"""The fused formulation of residual networks: stem and bottleneck block."""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax

from vt_flax.fused.norms import GramNorm, OnePassBatchNorm, PooledNorm
from vt_flax.fused.parameters import ConvKernel
from vt_flax.nn.layers import Layers, StochasticDepth


@dataclasses.dataclass(frozen=True)
class FusedLayers(Layers):
    """`Layers` whose BatchNorms read their input once."""

    BATCH_NORM = OnePassBatchNorm


class FusedStem(nn.Module):
    """`models.resnet.Stem` of kind `imagenet`, with pooling before normalization.

    Attributes:
      features: output channels.
      layers: dtype and BatchNorm settings.
    """

    features: int
    layers: Layers = Layers()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps images (batch, H, W, 3) to (batch, H / 4, W / 4, features)."""
        kernel = ConvKernel(self.features, 7, name="conv")(x.shape[-1])
        norm = self.layers.batch_norm("norm", kind=PooledNorm)
        return norm(x.astype(self.layers.dtype), kernel, train=train)


class FusedBottleneckBlock(nn.Module):
    """`models.resnet.BottleneckBlock` whose widening layers contain their BatchNorms.

    Attributes as there.
    """

    features: int
    stride: int = 1
    survival_probability: float = 1.0
    zero_init_residual: bool = False
    layers: Layers = FusedLayers()
    variant: str = "torchvision"

    expansion: ClassVar[int] = 4

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps (batch, H, W, C) to (batch, H / stride, W / stride, 4 * features)."""
        first, second = (self.stride, 1) if self.variant == "msra" else (1, self.stride)
        layers, norm = self.layers, self.layers.batch_norm
        features = self.expansion * self.features
        init = nn.initializers
        scale_init = init.zeros if self.zero_init_residual else init.ones

        x = x.astype(layers.dtype)
        y = layers.conv(self.features, 1, first, name="conv1")(x)
        y = nn.relu(norm("norm1")(y, train=train))
        y = layers.conv(self.features, 3, second, name="conv2")(y)
        y = nn.relu(norm("norm2")(y, train=train))
        kernel = ConvKernel(features, 1, name="conv3")(self.features)
        y = norm("norm3", scale_init, GramNorm)(y, kernel, train=train)
        y = StochasticDepth(self.survival_probability, name="depth")(y, train=train)
        if x.shape != y.shape:
            x = x[:, :: self.stride, :: self.stride]
            kernel = ConvKernel(features, 1, name="shortcut")(x.shape[-1])
            x = norm("shortcut_norm", kind=GramNorm)(x, kernel, train=train)
        return nn.relu(x + y)
