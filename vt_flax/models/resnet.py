"""Residual networks (He et al., 2015) with features at every stage.

Stages are numbered as in the papers: the stem is stage 1, the blocks are stages 2 to 5,
and C2 to C5 are their maps at strides 4, 8, 16 and 32.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from vt_flax.errors import UserError
from vt_flax.fused.gram_norm import GramNorm
from vt_flax.fused.pointwise import rectify_and_narrow
from vt_flax.fused.pooled_norm import PooledNorm
from vt_flax.nn.layers import (
    Conv,
    ConvKernel,
    StochasticDepth,
    linear_survival,
    relu,
)
from vt_flax.nn.norm import Normalization

STAGE_SIZES = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
}
STEMS = ("imagenet", "small")
# Classes, or channels of the stem: with more, no machine holds the arrays.
MOST = 1_000_000
# From so many outputs an input on, statistics are those of the inputs (`GramNorm`):
# their covariance is work, which what is not read and written has to outweigh.
WIDENING = 2
VARIANTS = ("torchvision", "msra")
# The shortcut's convolution, its normalisation, and where its scale starts.
SHORTCUT = ("shortcut", "shortcut_norm", nn.initializers.ones)


@dataclasses.dataclass(frozen=True)
class BlockParts:
    """What a block is made of, where a network has something of its own.

    Attributes:
      conv: makes a convolution that is not 1 x 1, called as `conv(channels, kernel,
        stride, dtype, name="conv2")`, or what stands in its place: a module that maps
        (batch, H, W, C) to (batch, H / stride, W / stride, channels), called as
        `module(x)`.
      gate: makes a module that the residual branch passes last, before it is dropped
        and added, called as `gate(dtype=dtype, norm=norm, name="gate")`; it keeps the
        shape and is called as `module(y, train=train)`. None for none.
      inner: channels between a bottleneck's 1 x 1 convolutions; 0 stands for its width.
      unit: makes a module that stands behind a block, called as `gate` is.
      unit_behind: the blocks of a stage, counted from 1, that have a unit behind them.
    """

    conv: Callable[..., nn.Module] = Conv
    gate: Callable[..., nn.Module] | None = None
    inner: int = 0
    unit: Callable[..., nn.Module] | None = None
    unit_behind: Sequence[int] = ()


class ResidualBlock(nn.Module):
    """A basic or a bottleneck block.

    Attributes:
      width: channels of the inner convolutions.
      stride: stride in pixels of the block.
      bottleneck: three convolutions 1 x 1, 3 x 3, 1 x 1 to 4 * width, or two 3 x 3.
      variant: where a bottleneck strides: `torchvision` in the 3 x 3, `msra` (the
        original, and Detectron2's) in the first 1 x 1. Basic blocks are alike.
      survival_probability: stochastic depth of the residual branch.
      zero_init_residual: whether the branch's last scale starts at zero.
      norm: batch normalisation.
      dtype: type of the computation.
      parts: what it is made of.
      rectify: whether the sum is rectified; if not, whoever takes it has to.
      rectify_input: whether a bottleneck is to do so for the block before it: its first
        convolution, which has no stride, then gives both of its own gradients and
        ReLU's in one pass (`fused.pointwise`).
    """

    width: int
    stride: int = 1
    bottleneck: bool = False
    variant: str = "torchvision"
    survival_probability: float = 1.0
    zero_init_residual: bool = False
    norm: Normalization = Normalization()
    dtype: Any = jnp.float32
    parts: BlockParts = BlockParts()
    rectify: bool = True
    rectify_input: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps (batch, H, W, C) to (batch, H / stride, W / stride, C')."""
        first, second = self.stride, 1
        if self.bottleneck and self.variant == "torchvision":
            first, second = 1, self.stride
        if self.bottleneck:
            features, inner = 4 * self.width, self.parts.inner or self.width
            plan = [(inner, 1, first), (inner, 3, second), (features, 1, 1)]
        else:
            features = self.width
            plan = [(self.width, 3, self.stride), (self.width, 3, 1)]

        y, stride_left = x, self.stride
        for i, (channels, kernel, stride) in enumerate(plan, 1):
            zero = i == len(plan) and self.zero_init_residual
            init = nn.initializers.zeros if zero else nn.initializers.ones
            names = f"conv{i}", f"norm{i}", init
            if i == 1 and self.rectify_input:
                weights = ConvKernel(channels, 1, name="conv1")(x.shape[-1])
                x = x.astype(self.dtype)
                x, y = rectify_and_narrow(x, weights, self.stride)
                stride_left = 1
                y = self.norm.layer("norm1", init)(y, train=train)
            elif i == 3 and self.parts.gate is None and _widens(y, channels):
                y = self._add(x, y, channels, stride_left, names, train=train)
                return relu(y) if self.rectify else y
            elif kernel == 1:
                y = relu(y) if i > 1 else y
                y = self._pointwise(y, channels, stride, names, train=train)
            else:
                y = relu(y) if i > 1 else y
                conv = self.parts.conv
                y = conv(channels, kernel, stride, self.dtype, name=f"conv{i}")(y)
                y = self.norm.layer(f"norm{i}", init)(y, train=train)
        if self.parts.gate is not None:
            gate = self.parts.gate(dtype=self.dtype, norm=self.norm, name="gate")
            y = gate(y, train=train)
        y = StochasticDepth(self.survival_probability, name="depth")(y, train=train)
        if x.shape[-1] != features or self.stride != 1:
            x = self._pointwise(x, features, stride_left, SHORTCUT, train=train)
        return relu(x + y) if self.rectify else x + y

    @nn.nowrap
    def _add(self, x, y, features, stride, names, *, train):
        """The sum of what `x` and the branch come to, whose last convolution is left.

        Where the shortcut has a convolution too, both are one, of their maps side by
        side, and neither result is held on its own. A branch is dropped, and scaled,
        before its convolution, whose result is then as large as what comes back to it.
        """
        depth = StochasticDepth(self.survival_probability, name="depth")
        shares = depth.shares(y.shape[0], train=train)
        folded = self._folded(relu(y), features, names, train=train)
        if shares is not None:
            y *= shares[:, None, None, None].astype(y.dtype)
            shares = shares[:, None]
        projected = x.shape[-1] != features or self.stride != 1
        if not (projected and _widens(x, features)):
            if projected:
                x = self._pointwise(x, features, stride, SHORTCUT, train=train)
            return x + folded(y, shares, rectify=True)
        x = x[:, ::stride, ::stride].astype(self.dtype)
        folded = folded.beside(self._folded(x, features, SHORTCUT, train=train))
        if shares is not None:
            shares = jnp.concatenate([shares, jnp.ones_like(shares)], axis=1)
        return folded(jnp.concatenate([relu(y), x], axis=-1), shares)

    @nn.nowrap
    def _pointwise(self, x, features, stride, names, *, train):
        """A 1 x 1 convolution and its normalisation, by their names."""
        if not _widens(x, features):
            conv, norm, scale_init = names
            x = Conv(features, 1, stride, self.dtype, name=conv)(x)
            return self.norm.layer(norm, scale_init)(x, train=train)
        x = x[:, ::stride, ::stride].astype(self.dtype)
        return self._folded(x, features, names, train=train)(x)

    @nn.nowrap
    def _folded(self, x, features, names, *, train):
        """One of many outputs, with its normalisation in it."""
        conv, norm, scale_init = names
        kernel = ConvKernel(features, 1, name=conv)(x.shape[-1])
        return GramNorm.of(self.norm, norm, scale_init)(x, kernel, train=train)


def _widens(x: jax.Array, features: int) -> bool:
    return features >= WIDENING * x.shape[-1]


class Stage(nn.Module):
    """Consecutive residual blocks on one scale; see `ResidualBlock` for the attributes.

    Attributes:
      survival_probabilities: of each block; their number is the number of blocks.
      rectify: of the last block.
      rectify_input: of the first.
    """

    width: int
    stride: int
    survival_probabilities: tuple[float, ...]
    bottleneck: bool
    variant: str
    zero_init_residual: bool
    norm: Normalization
    dtype: Any
    parts: BlockParts
    rectify: bool = True
    rectify_input: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps (batch, H, W, C) to (batch, H / stride, W / stride, C')."""
        left = self.rectify_input  # to be rectified by the next block
        for i, survival in enumerate(self.survival_probabilities, 1):
            unit_behind = i in self.parts.unit_behind
            last = i == len(self.survival_probabilities)
            before = left
            left = not self.rectify if last else self.bottleneck and not unit_behind
            x = ResidualBlock(
                self.width,
                self.stride if i == 1 else 1,
                self.bottleneck,
                self.variant,
                survival,
                self.zero_init_residual,
                self.norm,
                self.dtype,
                self.parts,
                rectify=not left,
                rectify_input=before,
                name=f"block{i}",
            )(x, train=train)
            if unit_behind:
                unit = self.parts.unit
                unit = unit(dtype=self.dtype, norm=self.norm, name=f"unit{i}")
                x = unit(x, train=train)
        return x


class Stem(nn.Module):
    """The first layers of a network.

    Attributes:
      width: output channels.
      kind: `imagenet`: 7 x 7 stride 2 and 3 x 3 max pooling stride 2;
        `small`: one 3 x 3 of stride 1, for images of about 32 x 32.
      norm: batch normalisation.
      dtype: type of the computation.
    """

    width: int
    kind: str
    norm: Normalization
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps images (batch, H, W, 3) to (batch, H / 4, W / 4, width), or H, W."""
        if self.kind == "imagenet":
            kernel = ConvKernel(self.width, 7, name="conv")(x.shape[-1])
            layer = PooledNorm.of(self.norm, "norm")
            return layer(x.astype(self.dtype), kernel, train=train)
        x = Conv(self.width, 3, 1, self.dtype, name="conv")(x)
        return relu(self.norm.layer("norm")(x, train=train))


class Backbone(nn.Module):
    """What every residual network here shares: options, stem and stages.

    Attributes:
      stage_sizes: blocks of each stage, STAGES numbers; in residual networks those of
        stages 2 to 5.
      bottleneck: kind of block; see `ResidualBlock`.
      num_classes: outputs of the network.
      width: channels of stage 2's inner convolutions; each stage doubles it.
      stem: see `Stem`.
      variant: see `ResidualBlock`.
      survival_probability: of the last block; earlier ones by the linear rule.
      zero_init_residual: see `ResidualBlock`.
      norm_span: see `nn.norm.BatchNorm`.
      norm_momentum: see `nn.norm.BatchNorm`.
      norm_epsilon: see `nn.norm.BatchNorm`.
      dtype: type of the computation. Parameters, statistics and logits are float32.
    """

    STAGES: ClassVar[int] = 4

    stage_sizes: Sequence[int]
    bottleneck: bool
    num_classes: int = 1000
    width: int = 64
    stem: str = "imagenet"
    variant: str = "torchvision"
    survival_probability: float = 1.0
    zero_init_residual: bool = False
    norm_span: str = "global"
    norm_momentum: float = 0.9
    norm_epsilon: float = 1e-5
    dtype: Any = jnp.float32

    def __post_init__(self):
        for name, choices in (("stem", STEMS), ("variant", VARIANTS)):
            if getattr(self, name) not in choices:
                raise UserError(
                    f"{name}={getattr(self, name)!r} is not known: choose from "
                    f"{', '.join(choices)}"
                )
        if not 0.0 < self.survival_probability <= 1.0:
            raise UserError(
                f"survival_probability={self.survival_probability}: must be over 0, "
                "and at most 1"
            )
        for name in ("num_classes", "width"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: must be at least 1")
            if getattr(self, name) > MOST:
                raise UserError(f"{name}={getattr(self, name)}: must be at most {MOST}")
        if len(self.stage_sizes) != self.STAGES or min(self.stage_sizes) < 1:
            raise UserError(
                f"stage_sizes={list(self.stage_sizes)}: must be {self.STAGES} numbers "
                "of blocks, each at least 1"
            )
        self.normalization()
        super().__post_init__()

    @nn.nowrap
    def normalization(self, placement: str = "tokens") -> Normalization:
        """Returns the batch normalisation that these options ask for."""
        return Normalization(
            placement,
            self.norm_span,
            self.norm_momentum,
            self.norm_epsilon,
            self.dtype,
        )

    @nn.nowrap
    def block_parts(self, stage: int) -> BlockParts:
        """Returns what the blocks of a stage, 2 to 5, are made of."""
        del stage
        return BlockParts()

    @nn.nowrap
    def stage_width(self, stage: int) -> int:
        """Returns the width of the blocks of a stage, 2 to 5: see `ResidualBlock`."""
        return self.width * 2 ** (stage - 2)

    @nn.nowrap
    def make_stem(self) -> nn.Module:
        """Returns the stem, inside a compact method."""
        return Stem(
            self.width, self.stem, self.normalization(), self.dtype, name="stem"
        )

    @nn.nowrap
    def survival(self, block: int) -> float:
        """Survival probability of a block, counted from 0 through all the stages."""
        return linear_survival(
            block + 1, sum(self.stage_sizes), self.survival_probability
        )

    def run_stem(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Runs the stem on images inside a compact method.

        Raises:
          UserError: if `x` is not (batch, H, W, 3).
        """
        if x.ndim != 4 or x.shape[-1] != 3:
            raise UserError(
                f"images of shape {x.shape}: expected (batch, height, width, 3)"
            )
        return self.make_stem()(x.astype(self.dtype), train=train)

    def features(self, x: jax.Array, stages: int, *, train: bool) -> dict:
        """Runs the stem and the first `stages` stages inside a compact method.

        Returns:
          {"C2": (batch, H / 4, W / 4, ...), "C3": ...} up to the last stage run.
        """
        norm = self.normalization()
        x = self.run_stem(x, train=train)
        maps, first, left = {}, 0, False
        for i, size in enumerate(self.stage_sizes[:stages]):
            parts = self.block_parts(i + 2)
            before = left
            left = (
                self.bottleneck
                and self.variant == "torchvision"
                and i + 1 < stages
                and size not in parts.unit_behind
            )
            x = Stage(
                self.stage_width(i + 2),
                1 if i == 0 else 2,
                tuple(self.survival(first + j) for j in range(size)),
                self.bottleneck,
                self.variant,
                self.zero_init_residual,
                norm,
                self.dtype,
                parts,
                rectify=not left,
                rectify_input=before,
                name=f"stage{i + 2}",
            )(x, train=train)
            first += size
            maps[f"C{i + 2}"] = relu(x) if left else x
        return maps


class Classifier(Backbone):
    """What the networks that give one label an image share; options as in `Backbone`.

    Attributes:
      dropout: rate of dropout before the classifier.
    """

    dropout: float = 0.0

    def __post_init__(self):
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"dropout={self.dropout}: must be at least 0, and under 1")
        super().__post_init__()

    def classify(self, pooled: jax.Array, *, train: bool) -> jax.Array:
        """Maps pooled features (batch, C) to logits (batch, num_classes), float32."""
        pooled = nn.Dropout(self.dropout, name="dropout")(
            pooled, deterministic=not train
        )
        # float32: rounded to bfloat16, the best classes of an image would often tie.
        return nn.Dense(
            self.num_classes,
            kernel_init=nn.initializers.normal(0.01),
            dtype=jnp.float32,
            name="head",
        )(pooled)


class ResNet(Classifier):
    """ResNet-{18, 34, 50, 101}; options as in `Classifier`."""

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, features: bool = False
    ) -> jax.Array | dict:
        """Classifies images.

        Args:
          x: images (batch, H, W, 3), normalised.
          train: whether batch statistics, dropout and stochastic depth are live.
          features: whether to return the maps of stages 2 to 5 instead of logits.

        Returns:
          logits (batch, num_classes), float32; or {"C2": ..., "C5": ...}, each
          (batch, H / stride, W / stride, channels) in `dtype`.
        """
        maps = self.features(x, 4, train=train)
        if features:
            return maps
        pooled = jnp.mean(maps["C5"].astype(jnp.float32), axis=(1, 2))
        return self.classify(pooled, train=train)
