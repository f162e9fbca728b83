"""LR-Net: residual networks of local relation layers (Hu et al., 2019)."""

from typing import Any

import flax.linen as nn
import jax

from vt_flax.models.comparison.local_attention import check_formulation
from vt_flax.models.comparison.local_relation import LocalRelation
from vt_flax.models.resnet import BlockParts, ResNet
from vt_flax.nn.layers import Conv, pad
from vt_flax.nn.norm import Normalization

# Blocks of stages 2 to 5, and whether they are bottlenecks.
DEPTHS = {
    18: ((2, 2, 2, 2), False),
    26: ((2, 2, 2, 2), True),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
}

# Channels inside a bottleneck, and of a basic block, where ResNet's width is 64.
INNER, BASIC = 100, 177


class LRStem(nn.Module):
    """1 x 1 and a local relation layer; see `models.resnet.Stem` for the attributes.

    The layer strides, and 3 x 3 max pooling of stride 2 follows, but for the kind
    `small`, which does neither.
    """

    width: int
    kind: str
    norm: Normalization
    formulation: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps images (batch, H, W, 3) to (batch, H / 4, W / 4, width), or H, W."""
        x = Conv(self.width, 1, dtype=self.dtype, name="conv")(x)
        x = nn.relu(self.norm.layer("norm")(x, train=train))
        stride = 2 if self.kind == "imagenet" else 1
        x = LocalRelation(
            self.width, stride, formulation=self.formulation, dtype=self.dtype,
            name="relation",
        )(x)  # fmt: skip
        x = nn.relu(self.norm.layer("relation_norm")(x, train=train))
        if self.kind == "imagenet":
            x = nn.max_pool(x, (3, 3), (2, 2), pad(3))
        return x


class LRNet(ResNet):
    """LR-Net-{18, 26, 50, 101}; options as in `Classifier`.

    ResNet with a 7 x 7 local relation layer for every convolution that is not 1 x 1,
    and bottlenecks of 100 to 800 channels inside instead of 64 to 512.

    Parameters, in M: 14.4, 14.6, 23.4, 40.8, where its paper has 14.4, 14.7, 23.3 and
    42.0. The width 177 of the basic blocks is chosen for the first [fit]; the paper
    tells no width.

    GMACs by the rule of `analysis.macs`: 2.21, 2.37, 4.02 and 7.48; (q - k)^2 is no
    product. The paper prints 2.5, 2.6, 4.3 and 7.79. The gap does not grow with depth:
    it is the stem's, whose layer, computed at every pixel and strided after that, which
    gives the same result, costs 0.29 more: 2.50, 2.66, 4.31 and 7.77 [fit].

    Attributes:
      formulation: how attention is computed; see `models.comparison.local_attention`.
    """

    formulation: str = "scan"

    def __post_init__(self):
        check_formulation(self.formulation)
        super().__post_init__()

    @nn.nowrap
    def stage_width(self, stage: int) -> int:
        """See `Backbone`."""
        width = self.width if self.bottleneck else self.width * BASIC // 64
        return width * 2 ** (stage - 2)

    @nn.nowrap
    def block_parts(self, stage: int) -> BlockParts:
        """See `Backbone`."""

        def conv(channels, kernel, stride, dtype, name):
            del kernel
            return LocalRelation(
                channels, stride, formulation=self.formulation, dtype=dtype, name=name
            )

        inner = self.width * 2 ** (stage - 2) * INNER // 64
        return BlockParts(conv, inner=inner)

    @nn.nowrap
    def make_stem(self) -> nn.Module:
        """See `Backbone`."""
        return LRStem(
            self.width, self.stem, self.normalization(), self.formulation, self.dtype,
            name="stem",
        )  # fmt: skip
