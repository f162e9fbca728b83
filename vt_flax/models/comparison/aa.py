"""AA-ResNet: attention-augmented convolutions in the last three stages.

Bello et al., 2019. Augmented are the 3 x 3 of each bottleneck, and the first 3 x 3 of
each basic block: attention makes 0.1 (0.25 in basic blocks) of the channels, with 0.2
(0.25) of them as keys, but 20 a head at least. Stage 3's maps, 28 x 28 of an image of
224, are attended at half their resolution. 20.75, 25.81 and 45.39 M parameters for 34,
50 and 101 layers.

What its paper leaves open, and what is done here: channels of attention are rounded
down to a multiple of the heads (8 of 128, not 16: the parameters say so); its maps have
no biases; where the convolution has a stride of 2, attention sees means of 3 x 3 pixels
with stride 2, as it does for stage 3.

MACs counted: 3597, 4207 and 8165 M, of which 92, 79 and 214 M are the products of
attention. The source prints 7.1, 8.3 and 16.1 G operations, halves of which are 1.3 to
1.4 % less: the rounding of such figures, and what of attention was counted, are not
known. The paper compared with has 4100 M (8.3 / 2 = 4.15) and 25.6 M parameters for 50
layers, where the source has 25.8 M.
"""

import functools

import flax.linen as nn

from vt_flax.errors import UserError
from vt_flax.models.comparison.augmented_attention import AugmentedConv
from vt_flax.models.resnet import BlockParts, ResNet
from vt_flax.nn.layers import Conv

# Keys and values of attention as shares of a convolution's output channels.
BASIC_SHARES = (0.25, 0.25)
BOTTLENECK_SHARES = (0.2, 0.1)
LEAST_KEY_CHANNELS = 20


class AAResNet(ResNet):
    """AA-ResNet-{34, 50, 101}; options as in `Classifier`.

    Attributes:
      heads: number of heads of each attention.
    """

    heads: int = 8

    def __post_init__(self):
        if self.heads < 1:
            raise UserError(f"heads={self.heads}: must be at least 1")
        super().__post_init__()

    @nn.nowrap
    def block_parts(self, stage: int) -> BlockParts:
        """Returns the parts of a stage's blocks: augmented from stage 3 on."""
        if stage == 2:
            return BlockParts()
        reduction = 2 if stage == 3 else 1
        make = functools.partial(_conv, self.bottleneck, self.heads, reduction)
        return BlockParts(conv=make)


def _conv(
    bottleneck: bool, heads: int, reduction: int, channels: int, *args, name: str
) -> nn.Module:
    """Returns a block's 3 x 3 of this name, augmented unless it is a second one."""
    if name == "conv2" and not bottleneck:
        return Conv(channels, *args, name=name)
    shares = BOTTLENECK_SHARES if bottleneck else BASIC_SHARES
    keys, values = (int(share * channels) // heads for share in shares)
    return AugmentedConv(
        channels,
        *args,
        heads,
        heads * max(keys, LEAST_KEY_CHANNELS),
        heads * max(values, 1),
        reduction,
        name=name,
    )
