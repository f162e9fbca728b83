"""SAN: networks of pairwise or patchwise self-attention (Zhao et al., 2020)."""

from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from vt_flax.models.comparison.local_attention import check_formulation
from vt_flax.models.comparison.pairwise_attention import PairwiseAttention
from vt_flax.models.comparison.patchwise_attention import PatchwiseAttention
from vt_flax.models.resnet import Classifier
from vt_flax.nn.layers import Linear, StochasticDepth, pad_end
from vt_flax.nn.norm import Normalization

# Blocks of stages 1 to 5.
STAGE_SIZES = {10: (2, 1, 2, 4, 1), 15: (3, 2, 3, 5, 2), 19: (3, 3, 4, 6, 3)}

# Of each stage: channels where the width is 64, and the side of the window.
CHANNELS = (1, 4, 8, 16, 32)
WINDOWS = (3, 7, 7, 7, 7)


class SANStem(nn.Module):
    """A 1 x 1 map of the pixels, normalised.

    Attributes:
      width: output channels.
      norm: batch normalisation.
      dtype: type of the computation.
    """

    width: int
    norm: Normalization
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps images (batch, H, W, 3) to (batch, H, W, width)."""
        x = Linear(self.width, dtype=self.dtype, name="conv")(x)
        return nn.relu(self.norm.layer("norm")(x, train=train))


class SANBlock(nn.Module):
    """A pre-activation residual block around attention.

    Attributes:
      attention: makes the attention, called as `attention(name="attention")`.
      survival_probability: stochastic depth of the residual branch.
      zero_init_residual: whether the branch's last map starts at zero.
      norm: batch normalisation.
      dtype: type of the computation.
    """

    attention: Callable[..., nn.Module]
    survival_probability: float
    zero_init_residual: bool
    norm: Normalization
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps (batch, H, W, C) to the same shape."""
        y = nn.relu(self.norm.layer("norm1")(x, train=train))
        y = self.attention(name="attention")(y, train=train)
        y = nn.relu(self.norm.layer("norm2")(y, train=train))
        init = nn.initializers.lecun_normal()
        if self.zero_init_residual:
            init = nn.initializers.zeros
        y = nn.Dense(x.shape[-1], kernel_init=init, dtype=self.dtype, name="conv")(y)
        y = StochasticDepth(self.survival_probability, name="depth")(y, train=train)
        return x + y


class SANStage(nn.Module):
    """2 x 2 max pooling, 1 x 1, residual blocks, and a normalisation.

    Attributes:
      channels: output channels.
      pool: whether to pool.
      survival_probabilities: of each block; their number is the number of blocks.
      attention .. dtype: see `SANBlock`.
    """

    channels: int
    pool: bool
    survival_probabilities: tuple[float, ...]
    attention: Callable[..., nn.Module]
    zero_init_residual: bool
    norm: Normalization
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps (batch, H, W, C) to (batch, H / 2, W / 2, channels), or H, W.

        At an odd side the last pixels are pooled alone.
        """
        if self.pool:
            x = nn.max_pool(x, (2, 2), (2, 2), pad_end(x, 2))
        x = Linear(self.channels, dtype=self.dtype, name="conv")(x)
        for i, survival in enumerate(self.survival_probabilities):
            x = SANBlock(
                self.attention,
                survival,
                self.zero_init_residual,
                self.norm,
                self.dtype,
                name=f"block{i + 1}",
            )(x, train=train)
        return nn.relu(self.norm.layer("norm")(x, train=train))


class SAN(Classifier):
    """What SAN-{10, 15, 19} share; options as in `Classifier`, without `variant`.

    Five stages, of which the first two make the strides that `stem="small"` leaves out.
    The normalisation that the paper puts in front of a stage stands at the end of the
    one before, as in the authors' code.

    Parameters, in M: pairwise 10.53, 14.07, 17.60, patchwise 11.84, 16.18, 20.52: those
    of the paper and of the authors' code.

    GMACs by the rule of `analysis.macs`: pairwise 2.04, 2.86, 3.64, patchwise 1.79,
    2.48, 3.13. The paper prints 2.2, 3.0, 3.8 and 1.9, 2.6, 3.3: the authors' counter
    adds normalisation (two for each number), biases, ReLU, pooling and differences, and
    with these the counts are 2.155, 3.023, 3.844 and 1.865, 2.583, 3.259. The row SAN19
    of the paper of Visual Transformers, 3.3 and 20.5, is patchwise.

    Attributes:
      stage_sizes: blocks of stages 1 to 5.
      width: channels of the stem and of stage 1; the others have 4 to 32 times as many.
      formulation: how attention is computed; see `models.comparison.local_attention`.
    """

    STAGES: ClassVar[int] = 5
    ATTENTION: ClassVar[Callable[..., nn.Module]]
    # Options of residual blocks that these are not: pooling alone strides.
    bottleneck: ClassVar[bool] = True
    variant: ClassVar[str] = "torchvision"

    formulation: str = "scan"

    def __post_init__(self):
        check_formulation(self.formulation)
        super().__post_init__()

    @nn.nowrap
    def make_stem(self) -> nn.Module:
        """See `Backbone`."""
        return SANStem(self.width, self.normalization(), self.dtype, name="stem")

    @nn.nowrap
    def make_stage(self, stage: int, survivals: tuple[float, ...]) -> nn.Module:
        """Returns a stage, 1 to 5, with blocks of these survival probabilities."""
        norm = self.normalization()

        def attention(name):
            return self.ATTENTION(
                WINDOWS[stage - 1], norm, self.formulation, self.dtype, name=name
            )

        return SANStage(
            self.width * CHANNELS[stage - 1],
            stage > 2 or self.stem == "imagenet",
            survivals,
            attention,
            self.zero_init_residual,
            norm,
            self.dtype,
            name=f"stage{stage}",
        )

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, features: bool = False
    ) -> jax.Array | dict:
        """Classifies images: see `ResNet`; C2 to C5 are the maps of stages 2 to 5."""
        x = self.run_stem(x, train=train)
        maps, first = {}, 0
        for stage, size in enumerate(self.stage_sizes, 1):
            survivals = tuple(self.survival(first + i) for i in range(size))
            x = self.make_stage(stage, survivals)(x, train=train)
            first += size
            if stage > 1:
                maps[f"C{stage}"] = x
        if features:
            return maps
        pooled = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
        return self.classify(pooled, train=train)


class PairwiseSAN(SAN):
    """SAN with pairwise attention."""

    ATTENTION = PairwiseAttention


class PatchwiseSAN(SAN):
    """SAN with patchwise attention."""

    ATTENTION = PatchwiseAttention
