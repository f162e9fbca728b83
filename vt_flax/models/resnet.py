"""Residual networks (He et al., 2015) with features at every stage.

Stages are numbered as in the papers: the stem is stage 1, the blocks are stages 2 to 5,
and C2 to C5 are their maps at strides 4, 8, 16 and 32.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from vt_flax import fused
from vt_flax.errors import UserError
from vt_flax.nn.checks import check_choice
from vt_flax.nn.layers import Layers, StochasticDepth, linear_survival, pad

STAGE_SIZES = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
}
STEMS = ("imagenet", "small")
VARIANTS = ("torchvision", "msra")
# Of classes and channels: no machine holds the arrays of more.
MAX_SIZE = 1_000_000


class ResidualBlock(nn.Module):
    """Base of residual blocks: their attributes, and the end that they share.

    Attributes:
      features: channels of the 3 x 3 convolutions.
      stride: stride in pixels.
      survival_probability: stochastic depth of the residual branch.
      zero_init_residual: whether the branch's last scale starts at zero.
      layers: dtype and BatchNorm settings.
      conv: replaces the 3 x 3 convolutions, called as `conv(features, kernel, stride,
        layers=layers, name=name)`; None for convolutions.
      gate: module at the end of the residual branch, called as `gate(layers=layers,
        name=name)` and `module(y, train=train)`; None for none.
    """

    features: int
    stride: int = 1
    survival_probability: float = 1.0
    zero_init_residual: bool = False
    layers: Layers = Layers()
    conv: Callable[..., nn.Module] | None = None
    gate: Callable[..., nn.Module] | None = None

    expansion: ClassVar[int] = 1

    @nn.nowrap
    def conv3x3(self, features: int, stride: int, name: str) -> nn.Module:
        """Returns a 3 x 3 convolution, or what replaces it."""
        if self.conv is None:
            return self.layers.conv(features, 3, stride, name=name)
        return self.conv(features, 3, stride, layers=self.layers, name=name)

    @nn.nowrap
    def last_norm(self, name: str) -> nn.Module:
        """Returns the last BatchNorm of the residual branch."""
        init = nn.initializers
        scale_init = init.zeros if self.zero_init_residual else init.ones
        return self.layers.batch_norm(name, scale_init)

    @nn.nowrap
    def add_shortcut(self, x: jax.Array, y: jax.Array, train: bool) -> jax.Array:
        """Returns ReLU(shortcut(x) + gate(y)), inside a compact method.

        Args:
          x: input of the block, (batch, H, W, C).
          y: result of its branch, (batch, H / stride, W / stride, C').
          train: whether batch statistics and stochastic depth are live.
        """
        conv, norm = self.layers.conv, self.layers.batch_norm
        if self.gate is not None:
            y = self.gate(layers=self.layers, name="gate")(y, train=train)
        y = StochasticDepth(self.survival_probability, name="depth")(y, train=train)
        if x.shape != y.shape:
            x = conv(y.shape[-1], 1, self.stride, name="shortcut")(x)
            x = norm("shortcut_norm")(x, train=train)
        return nn.relu(x + y)


class BasicBlock(ResidualBlock):
    """Basic residual block: two 3 x 3 convolutions, plus shortcut (He et al., fig. 5).

    The stride is that of the first convolution.
    """

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps (batch, H, W, C) to (batch, H / stride, W / stride, features)."""
        norm = self.layers.batch_norm
        y = self.conv3x3(self.features, self.stride, "conv1")(x)
        y = nn.relu(norm("norm1")(y, train=train))
        y = self.conv3x3(self.features, 1, "conv2")(y)
        y = self.last_norm("norm2")(y, train=train)
        return self.add_shortcut(x, y, train)


class BottleneckBlock(ResidualBlock):
    """Bottleneck residual block: 1 x 1, 3 x 3, 1 x 1, plus shortcut (fig. 5).

    Attributes:
      variant: where the stride is: `torchvision` in the 3 x 3 convolution, `msra` (the
        original, and Detectron2's) in the first 1 x 1.
      inner_features: channels inside, instead of `features`; 0 for these.
    """

    variant: str = "torchvision"
    inner_features: int = 0

    expansion: ClassVar[int] = 4

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps (batch, H, W, C) to (batch, H / stride, W / stride, 4 * features)."""
        first, second = (self.stride, 1) if self.variant == "msra" else (1, self.stride)
        inner = self.inner_features or self.features
        conv, norm = self.layers.conv, self.layers.batch_norm
        y = conv(inner, 1, first, name="conv1")(x)
        y = nn.relu(norm("norm1")(y, train=train))
        y = self.conv3x3(inner, second, "conv2")(y)
        y = nn.relu(norm("norm2")(y, train=train))
        y = conv(self.expansion * self.features, 1, name="conv3")(y)
        y = self.last_norm("norm3")(y, train=train)
        return self.add_shortcut(x, y, train)


class Stage(nn.Module):
    """Consecutive residual blocks, of which the first may stride.

    Attributes:
      block: makes a block, called as `block(stride=stride, survival_probability=p,
        name=name)`.
      stride: stride in pixels of the first block.
      survival_probabilities: stochastic depth of each block; their number is the number
        of blocks.
    """

    block: Callable[..., nn.Module]
    stride: int
    survival_probabilities: tuple[float, ...]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps (batch, H, W, C) to (batch, H / stride, W / stride, C')."""
        for block in self.blocks():
            x = block(x, train=train)
        return x

    @nn.nowrap
    def blocks(self) -> Iterator[nn.Module]:
        """Makes the blocks, inside a compact method."""
        for i, survival in enumerate(self.survival_probabilities, 1):
            yield self.block(
                stride=self.stride if i == 1 else 1,
                survival_probability=survival,
                name=f"block{i}",
            )


class Stem(nn.Module):
    """First layers of a network.

    Attributes:
      features: output channels.
      kind: `imagenet`: 7 x 7 convolution of stride 2 and 3 x 3 max pooling of stride 2;
        `small`: one 3 x 3 convolution of stride 1, for images of about 32 x 32.
      layers: dtype and BatchNorm settings.
    """

    features: int
    kind: str = "imagenet"
    layers: Layers = Layers()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps images (batch, H, W, 3) to (batch, H / 4, W / 4, features), or H, W."""
        kernel, stride = (7, 2) if self.kind == "imagenet" else (3, 1)
        x = self.layers.conv(self.features, kernel, stride, name="conv")(x)
        x = nn.relu(self.layers.batch_norm("norm")(x, train=train))
        if self.kind == "imagenet":
            x = nn.max_pool(x, (3, 3), (2, 2), pad(3))
        return x


class Backbone(nn.Module):
    """Options, stem and stages that every residual network here shares.

    Attributes:
      stage_sizes: number of blocks of each stage, from FIRST_STAGE to stage 5.
      bottleneck: whether blocks are `BottleneckBlock` or `BasicBlock`.
      num_classes: outputs of the network.
      width: channels of stage 2's 3 x 3 convolutions; each stage doubles it.
      stem: see `Stem`.
      variant: see `BottleneckBlock`; basic blocks are alike.
      survival_probability: stochastic depth of the last block; earlier ones by the
        linear rule.
      zero_init_residual: see `BasicBlock`.
      bn_group_size .. bn_epsilon: see `nn.layers.Layers`.
      dtype: type of the computation. Parameters, statistics and logits are float32.
    """

    FIRST_STAGE: ClassVar[int] = 2
    # Networks with faster formulations make it an option: see `fused`.
    formulation = "printed"

    stage_sizes: Sequence[int]
    bottleneck: bool
    num_classes: int = 1000
    width: int = 64
    stem: str = "imagenet"
    variant: str = "torchvision"
    survival_probability: float = 1.0
    zero_init_residual: bool = False
    bn_group_size: int = 0
    bn_frozen: bool = False
    bn_momentum: float = 0.9
    bn_epsilon: float = 1e-5
    dtype: Any = jnp.float32

    def __post_init__(self):
        check_choice(STEMS, stem=self.stem)
        check_choice(VARIANTS, variant=self.variant)
        check_choice(("auto", *fused.FORMULATIONS), formulation=self.formulation)
        if not 0.0 < self.survival_probability <= 1.0:
            raise UserError(
                f"survival_probability={self.survival_probability}: must be over 0, "
                "and at most 1"
            )
        for name in ("num_classes", "width"):
            if not 1 <= getattr(self, name) <= MAX_SIZE:
                raise UserError(
                    f"{name}={getattr(self, name)}: must be at least 1, and at most "
                    f"{MAX_SIZE}"
                )
        stages = 6 - self.FIRST_STAGE
        if len(self.stage_sizes) != stages or min(self.stage_sizes) < 1:
            raise UserError(
                f"stage_sizes={list(self.stage_sizes)}: must be {stages} numbers of "
                "blocks, each at least 1"
            )
        # Checks them, and leaves JAX's devices alone.
        self.layer_settings(Layers)
        super().__post_init__()

    @nn.nowrap
    def layer_settings(self, kind: type[Layers] | None = None, **settings: Any) -> Any:
        """Returns the layers that these options describe, of a class `kind`."""
        if kind is None:
            kind = fused.FusedLayers if self.computed_by() == "fused" else Layers
        return kind(
            self.dtype,
            self.bn_group_size,
            self.bn_frozen,
            self.bn_momentum,
            self.bn_epsilon,
            **settings,
        )

    @nn.nowrap
    def computed_by(self) -> str:
        """Returns the formulation, which for `auto` depends on the platform."""
        return fused.resolve(self.formulation, type(self).__name__, self.bottleneck)

    @nn.nowrap
    def stage_width(self, stage: int) -> int:
        """Returns `features` of the blocks of a stage, 2 to 5."""
        return self.width * 2 ** (stage - 2)

    @nn.nowrap
    def block_options(self, stage: int) -> dict[str, Any]:
        """Returns attributes of a stage's blocks that differ from their defaults."""
        del stage
        return {}

    @nn.nowrap
    def make_stem(self) -> nn.Module:
        """Returns the stem, inside a compact method."""
        layers = self.layer_settings()
        if self.computed_by() == "fused" and self.stem == "imagenet":
            return fused.FusedStem(self.width, layers, name="stem")
        return Stem(self.width, self.stem, layers, name="stem")

    @nn.nowrap
    def make_stage(self, stage: int) -> nn.Module:
        """Returns a stage of residual blocks, 2 to 5, inside a compact method."""
        block: Callable[..., nn.Module] = BasicBlock
        options = self.block_options(stage)
        if self.bottleneck:
            is_fused = self.computed_by() == "fused"
            block = fused.FusedBottleneckBlock if is_fused else BottleneckBlock
            options = {"variant": self.variant} | options
        block = functools.partial(
            block,
            self.stage_width(stage),
            zero_init_residual=self.zero_init_residual,
            layers=self.layer_settings(),
            **options,
        )
        stride = 1 if stage == 2 else 2
        survival = self.survival_probabilities(stage)
        return self.stage_class(stage)(block, stride, survival, name=f"stage{stage}")

    @nn.nowrap
    def stage_class(self, stage: int) -> type[Stage]:
        """Returns the class of a stage, 2 to 5."""
        del stage
        return Stage

    @nn.nowrap
    def survival_probabilities(self, stage: int) -> tuple[float, ...]:
        """Returns the survival probability of each block of a stage."""
        index = stage - self.FIRST_STAGE
        before, count = sum(self.stage_sizes[:index]), self.stage_sizes[index]
        total, final = sum(self.stage_sizes), self.survival_probability
        blocks = range(before + 1, before + count + 1)
        return tuple(linear_survival(block, total, final) for block in blocks)

    def features(self, x: jax.Array, last_stage: int, *, train: bool) -> dict:
        """Runs the stem and the stages up to `last_stage`, inside a compact method.

        Returns:
          {"C2": (batch, H / 4, W / 4, ...), "C3": ...} up to the last stage.

        Raises:
          UserError: if `x` is not (batch, H, W, 3).
        """
        if x.ndim != 4 or x.shape[-1] != 3:
            raise UserError(
                f"images of shape {x.shape}: expected (batch, height, width, 3)"
            )
        x = self.make_stem()(x.astype(self.dtype), train=train)
        maps = {}
        for stage in range(self.FIRST_STAGE, last_stage + 1):
            x = self.make_stage(stage)(x, train=train)
            if stage >= 2:
                maps[f"C{stage}"] = x
        return maps


class Classifier(Backbone):
    """Residual network, global average pooling and a linear head.

    Options as in `Backbone`, and:

    Attributes:
      dropout: rate of dropout before the head.
    """

    dropout: float = 0.0

    def __post_init__(self):
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"dropout={self.dropout}: must be at least 0, and under 1")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, features: bool = False
    ) -> jax.Array | dict:
        """Classifies images.

        Args:
          x: images (batch, H, W, 3), normalized.
          train: whether batch statistics, dropout and stochastic depth are live.
          features: whether to return the maps of stages 2 to 5 instead of logits.

        Returns:
          logits (batch, num_classes), float32; or {"C2": ..., "C5": ...}, each
          (batch, H / stride, W / stride, channels) in `dtype`.
        """
        maps = self.features(x, 5, train=train)
        if features:
            return maps
        pooled = jnp.mean(maps["C5"].astype(jnp.float32), axis=(1, 2))
        return self.classify(pooled, train=train)

    def classify(self, pooled: jax.Array, *, train: bool) -> jax.Array:
        """Maps pooled features (batch, C) to logits (batch, num_classes), float32."""
        dropout = nn.Dropout(self.dropout, name="dropout")
        pooled = dropout(pooled, deterministic=not train)
        # float32: rounded to bfloat16, the best classes of an image would often tie.
        return nn.Dense(
            self.num_classes,
            kernel_init=nn.initializers.normal(0.01),
            dtype=jnp.float32,
            name="head",
        )(pooled)


class ResNet(Classifier):
    """ResNet-{18, 34, 50, 101}; options as in `Classifier`, and one.

    Attributes:
      formulation: how the network is computed; see `fused`.
    """

    formulation: str = "auto"
