"""Stand-alone self-attention in a residual network (Ramachandran et al., 2019)."""

from typing import Any

import flax.linen as nn
import jax

from vt_flax.errors import UserError
from vt_flax.models.comparison.local_attention import check_formulation
from vt_flax.models.comparison.stand_alone_attention import (
    BlockAttention,
    StandAloneAttention,
)
from vt_flax.models.resnet import BlockParts, ResNet
from vt_flax.nn.layers import pad_end
from vt_flax.nn.norm import Normalization

# Blocks of stages 2 to 5, all bottlenecks.
STAGE_SIZES = {26: (1, 2, 4, 1), 38: (2, 3, 5, 2), 50: (3, 4, 6, 3)}


class AttentionStem(nn.Module):
    """Attention inside 4 x 4 blocks; see `models.resnet.Stem` for the attributes.

    Max pooling over the same blocks follows, but for the kind `small`.
    """

    width: int
    kind: str
    heads: int
    norm: Normalization
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps images (batch, H, W, 3) to (batch, H / 4, W / 4, width), or H, W."""
        x = BlockAttention(self.width, self.heads, dtype=self.dtype, name="attention")(
            x
        )
        x = self.norm.layer("norm")(x, train=train)
        if self.kind == "imagenet":
            x = nn.max_pool(x, (4, 4), (4, 4), pad_end(x, 4))
        return x


class PooledAttention(nn.Module):
    """Stand-alone attention, and 2 x 2 mean pooling for the stride.

    Attributes:
      features .. dtype: see `StandAloneAttention`.
      stride: in pixels; 1 or 2. At an odd side the last pixels are pooled alone.
    """

    features: int
    heads: int
    stride: int
    formulation: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, H, W, C) to (batch, H / stride, W / stride, features)."""
        x = StandAloneAttention(
            self.features, self.heads, formulation=self.formulation, dtype=self.dtype,
            name="attention",
        )(x)  # fmt: skip
        if self.stride == 1:
            return x
        steps = (self.stride, self.stride)
        return nn.avg_pool(
            x, steps, steps, pad_end(x, self.stride), count_include_pad=False
        )


class StandAloneResNet(ResNet):
    """Stand-Alone ResNet-{26, 38, 50}; options as in `Classifier`.

    ResNet's bottlenecks with 7 x 7 attention for the 3 x 3 convolution, and a stem of
    attention. `variant="msra"` strides in the first 1 x 1, without pooling.

    Parameters, in M: 10.34, 14.18 and 18.03, where its paper has 10.3, 14.1 and 18.0.

    GMACs by the rule of `analysis.macs`: 2.26, 2.88 and 3.50. Its paper prints FLOPs,
    twice that: 4.7, 6.0, 7.2; the paper of Visual Transformers 3.6 for the last. For
    the same networks with ResNet's convolution as the stem it prints 4.5, 5.7 and 7.0,
    and they count 2.24, 2.86 and 3.48 here, q . k and q . r each as a product. So the
    difference, 0.09 to 0.12, lies in the stem, of which the paper does not tell how
    many value maps are mixed. Here they are mixed first, since that depends on the
    place alone, and count as one.

    Attributes:
      heads: of attention everywhere.
      formulation: how attention is computed; see `models.comparison.local_attention`.
    """

    heads: int = 8
    formulation: str = "scan"

    def __post_init__(self):
        check_formulation(self.formulation)
        if self.heads < 1 or self.width % self.heads:
            raise UserError(
                f"{self.heads} heads do not divide width={self.width}: change heads"
            )
        super().__post_init__()

    @nn.nowrap
    def block_parts(self, stage: int) -> BlockParts:
        """See `Backbone`."""
        del stage

        def conv(channels, kernel, stride, dtype, name):
            del kernel
            return PooledAttention(
                channels, self.heads, stride, self.formulation, dtype, name=name
            )

        return BlockParts(conv)

    @nn.nowrap
    def make_stem(self) -> nn.Module:
        """See `Backbone`."""
        return AttentionStem(
            self.width, self.stem, self.heads, self.normalization(), self.dtype,
            name="stem",
        )  # fmt: skip
