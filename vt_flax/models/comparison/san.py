"""SAN: networks of pairwise or patchwise self-attention (Zhao et al., 2020).

The attention layers are in `san_attention`.
"""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax

from vt_flax.models.comparison.san_attention import (
    PairwiseAttention,
    PatchwiseAttention,
)
from vt_flax.models.resnet import Classifier
from vt_flax.nn.layers import Layers, StochasticDepth, pad_end

# Numbers of blocks of stages 1 to 5.
STAGE_SIZES = {10: (2, 1, 2, 4, 1), 15: (3, 2, 3, 5, 2), 19: (3, 3, 4, 6, 3)}

# Of each stage: multiple of the width, and side of the window.
MULTIPLES = (1, 4, 8, 16, 32)
WINDOWS = (3, 7, 7, 7, 7)


class SANBlock(nn.Module):
    """Pre-activation residual block around attention.

    Attributes:
      attention: makes the attention, called as `attention(layers=layers, name=name)`.
      survival_probability: stochastic depth of the residual branch.
      zero_init_residual: whether the branch's last map starts at zero.
      layers: dtype and BatchNorm settings.
    """

    attention: Callable[..., nn.Module]
    survival_probability: float = 1.0
    zero_init_residual: bool = False
    layers: Layers = Layers()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps (batch, H, W, C) to the same shape."""
        layers, norm = self.layers, self.layers.batch_norm
        y = nn.relu(norm("norm1")(x, train=train))
        y = self.attention(layers=layers, name="attention")(y, train=train)
        y = nn.relu(norm("norm2")(y, train=train))
        init = nn.initializers.lecun_normal()
        if self.zero_init_residual:
            init = nn.initializers.zeros
        y = nn.Dense(x.shape[-1], kernel_init=init, dtype=layers.dtype, name="conv")(y)
        y = StochasticDepth(self.survival_probability, name="depth")(y, train=train)
        return x + y


class SANStage(nn.Module):
    """Stage of SAN: 2 x 2 max pooling, 1 x 1 map, residual blocks, BatchNorm, ReLU.

    Attributes:
      features: output channels.
      pool: whether to pool.
      block: makes a block, called as `block(survival_probability=p, name=name)`.
      survival_probabilities: stochastic depth of each block; their number is the number
        of blocks.
      layers: dtype and BatchNorm settings.
    """

    features: int
    pool: bool = False
    block: Any = None
    survival_probabilities: tuple[float, ...] = ()
    layers: Layers = Layers()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps (batch, H, W, C) to (batch, H / 2, W / 2, features), or H, W.

        At an odd side the last pixels are pooled alone.
        """
        if self.pool:
            x = nn.max_pool(x, (2, 2), (2, 2), pad_end(x, 2))
        x = self.layers.linear(self.features, name="conv")(x)
        for i, survival in enumerate(self.survival_probabilities, 1):
            block = self.block(survival_probability=survival, name=f"block{i}")
            x = block(x, train=train)
        return nn.relu(self.layers.batch_norm("norm")(x, train=train))


class SAN(Classifier):
    """Base of SAN-{10, 15, 19}; options as in `Classifier` without `variant`.

    Five stages, of which the first two make the strides that `stem="small"` leaves out.
    The BatchNorm that the paper puts in front of a stage stands at the end of the one
    before, as in the authors' code.

    Parameters are those of the authors' code. The printed GMACs are 5 to 8 % more than
    those counted here: the authors' counter adds BatchNorm, biases, ReLU, pooling and
    differences. The row SAN19 of the paper of Visual Transformers is patchwise.

    Attributes:
      stage_sizes: numbers of blocks of stages 1 to 5.
      width: channels of the stem and of stage 1; the others have 4 to 32 times as many.
    """

    FIRST_STAGE: ClassVar[int] = 1
    ATTENTION: ClassVar[Callable[..., nn.Module]]
    # Not options, unlike in residual networks: only pooling strides.
    bottleneck: ClassVar[bool] = True  # type: ignore[misc]
    variant: ClassVar[str] = "torchvision"  # type: ignore[misc]

    @nn.nowrap
    def make_stem(self) -> nn.Module:
        """See `Backbone`: the stem is a stage without pooling and blocks."""
        return SANStage(self.width, layers=self.layer_settings(), name="stem")

    @nn.nowrap
    def make_stage(self, stage: int) -> nn.Module:
        """Returns a stage, 1 to 5, inside a compact method."""
        layers, features = self.layer_settings(), self.width * MULTIPLES[stage - 1]
        pool = stage > 2 or self.stem == "imagenet"
        block = functools.partial(
            SANBlock,
            functools.partial(self.ATTENTION, WINDOWS[stage - 1]),
            zero_init_residual=self.zero_init_residual,
            layers=layers,
        )
        survival = self.survival_probabilities(stage)
        return SANStage(features, pool, block, survival, layers, name=f"stage{stage}")


class PairwiseSAN(SAN):
    """SAN with pairwise attention."""

    ATTENTION = PairwiseAttention


class PatchwiseSAN(SAN):
    """SAN with patchwise attention."""

    ATTENTION = PatchwiseAttention
