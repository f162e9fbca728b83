"""Small layers shared by the networks: convolution, linear map, resize, drop path."""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from vt_flax.errors import UserError
from vt_flax.nn.batch_norm import BatchNorm, BatchNormBase
from vt_flax.nn.checks import check_at_least, check_choice

# Interpolation weights are applied as matrix products by `jax.image.resize`. They are
# not learned, and the paper's MACs leave them out: `paper.macs` skips this scope.
INTERPOLATION_SCOPE = "interpolation"

# Products of attention that are written elementwise, and summed afterwards, stand in
# this scope: `paper.macs` counts their multiplications.
PRODUCT_SCOPE = "attention_product"

NORM_PLACEMENTS = ("tokens", "every_map", "none")

conv_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def pad(kernel: int, dims: int = 2) -> tuple[tuple[int, int], ...]:
    """Returns PyTorch's symmetric padding for an odd kernel.

    SAME pads a strided convolution unevenly, which shifts the map by a pixel and makes
    imported weights give other numbers.
    """
    return ((kernel // 2, kernel // 2),) * dims


def pad_end(x: jax.Array, block: int) -> tuple[tuple[int, int], ...]:
    """Returns padding after the last pixels of (batch, H, W, C) to whole blocks."""
    return tuple((0, -side % block) for side in x.shape[1:3])


@dataclasses.dataclass(frozen=True)
class Layers:
    """Settings that the layers of a network share, and the layers made with them.

    Attributes:
      dtype: type of the computation; parameters and statistics are float32.
      bn_group_size: number of examples over which BatchNorm takes its statistics;
        0 for the whole batch.
      bn_frozen: whether BatchNorm uses, and keeps, its running statistics in training.
      bn_momentum: weight of the old running statistics in each update.
      bn_epsilon: added to BatchNorm's variance.

    Raises:
      UserError: for a value out of its range.
    """

    BATCH_NORM: ClassVar[type[BatchNorm]] = BatchNorm

    dtype: Any = jnp.float32
    bn_group_size: int = 0
    bn_frozen: bool = False
    bn_momentum: float = 0.9
    bn_epsilon: float = 1e-5

    def __post_init__(self):
        check_at_least(0, bn_group_size=self.bn_group_size)
        if not 0.0 <= self.bn_momentum < 1.0:
            raise UserError(
                f"bn_momentum={self.bn_momentum}: must be at least 0, and under 1"
            )
        if self.bn_epsilon <= 0.0:
            raise UserError(f"bn_epsilon={self.bn_epsilon}: must be over 0")

    def conv(self, features: int, kernel: int, stride: int = 1, *, name: str) -> "Conv":
        """Returns a convolution."""
        return Conv(features, kernel, stride, self.dtype, name=name)

    def linear(self, features: int, groups: int = 1, *, name: str) -> "Linear":
        """Returns a linear map."""
        return Linear(features, groups, self.dtype, name=name)

    def batch_norm(
        self,
        name: str,
        scale_init: Any = nn.initializers.ones,
        kind: type[BatchNormBase] | None = None,
        **settings: Any,
    ) -> Any:
        """Returns a `BatchNorm`, or a module of a class `kind` with more settings."""
        return (kind or self.BATCH_NORM)(
            self.bn_group_size,
            self.bn_frozen,
            self.bn_momentum,
            self.bn_epsilon,
            scale_init=scale_init,
            dtype=self.dtype,
            name=name,
            **settings,
        )


@dataclasses.dataclass(frozen=True)
class VTLayers(Layers):
    """`Layers` of Visual Transformer modules, with the placement of their BatchNorms.

    The paper does not say where modules normalize. The default leaves every product of
    two pixel maps as printed, so that the equations may be re-associated.

    Attributes:
      norm_placement: `tokens` (after the token map, after each feed-forward map and on
        the projector's sum), `every_map` (these, and after every other linear map, as
        in the authors' later code) or `none`.
    """

    norm_placement: str = "tokens"

    def __post_init__(self):
        check_choice(NORM_PLACEMENTS, norm_placement=self.norm_placement)
        super().__post_init__()

    def norm_tokens(self, x: jax.Array, name: str, *, train: bool) -> jax.Array:
        """Normalizes tokens or a projector's sum, unless switched off."""
        if self.norm_placement == "none":
            return x
        return self.batch_norm(name)(x, train=train)

    def norm_map(self, x: jax.Array, name: str, *, train: bool) -> jax.Array:
        """Normalizes the result of any other linear map with `every_map`."""
        if self.norm_placement != "every_map":
            return x
        return self.batch_norm(name)(x, train=train)


class Conv(nn.Module):
    """A k x k convolution without bias, with symmetric padding of k // 2.

    Attributes:
      features: output channels.
      kernel: odd kernel size in pixels.
      stride: stride in pixels.
      dtype: type of the computation; the kernel (k, k, in, out) is float32.
    """

    features: int
    kernel: int
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, H, W, C) to (batch, H', W', features)."""
        kernel = conv_kernel(self, x.shape[-1])
        return convolve(x, kernel, self.stride, self.dtype)


def conv_kernel(module: nn.Module, channels: int) -> jax.Array:
    """Returns the kernel of a `Conv`-like module, (k, k, channels, features), float32.

    Called inside the module's compact method.
    """
    shape = (module.kernel, module.kernel, channels, module.features)
    return module.param("kernel", conv_init, shape, jnp.float32)


def convolve(
    x: jax.Array, kernel: jax.Array, stride: int = 1, dtype: Any = jnp.float32
) -> jax.Array:
    """Convolves (batch, H, W, C) with (k, k, C, features), padded by k // 2."""
    return jax.lax.conv_general_dilated(
        x.astype(dtype),
        kernel.astype(dtype),
        (stride, stride),
        pad(kernel.shape[0]),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


class Linear(nn.Module):
    """A linear map of the last axis without bias; grouped: block diagonal.

    A grouped map is one batched matrix product over blocks, not a grouped convolution,
    which TPUs and GPUs run far below their matrix rate.

    Attributes:
      features: output channels.
      groups: number of diagonal blocks.
      dtype: type of the computation; the kernel is float32, (in, features) for one
        group and (groups, in / groups, features / groups) for more.
    """

    features: int
    groups: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (..., C) to (..., features).

        Raises:
          UserError: if the groups do not divide both channel counts.
        """
        kernel = linear_kernel(self, x.shape[-1]).astype(self.dtype)
        x = x.astype(self.dtype)
        if self.groups == 1:
            return x @ kernel
        blocks = x.reshape(*x.shape[:-1], self.groups, x.shape[-1] // self.groups)
        out = jnp.einsum("...gi,gio->...go", blocks, kernel)
        return out.reshape(*x.shape[:-1], self.features)


def linear_kernel(module: nn.Module, channels: int) -> jax.Array:
    """Returns the kernel of a `Linear`-like module for `channels` inputs, float32.

    Called inside the module's compact method.

    Raises:
      UserError: if the groups do not divide both channel counts.
    """
    groups, features = module.groups, module.features
    if channels % groups or features % groups:
        raise UserError(
            f"{groups} groups do not divide a map from {channels} to {features} "
            f"channels (at {'/'.join(module.path)}): change group_channels or "
            "transformer_groups"
        )
    shape = (channels // groups, features // groups)
    if groups == 1:
        init = nn.initializers.lecun_normal()
        return module.param("kernel", init, shape, jnp.float32)
    init = nn.initializers.lecun_normal(batch_axis=(0,))
    return module.param("kernel", init, (groups, *shape), jnp.float32)


def split_heads(x: jax.Array, heads: int) -> jax.Array:
    """Splits the channels of (..., C) into (..., heads, C / heads).

    Raises:
      UserError: if the heads do not divide the channels.
    """
    channels = x.shape[-1]
    if channels % heads:
        raise UserError(
            f"{heads} heads do not divide {channels} channels: change heads"
        )
    return x.reshape(*x.shape[:-1], heads, channels // heads)


def resize(x: jax.Array, height: int, width: int) -> jax.Array:
    """Resizes (batch, H, W, C) bilinearly, half-pixel centers, without antialiasing.

    This is PyTorch's `interpolate(mode="bilinear", align_corners=False)`.
    """
    if x.shape[1:3] == (height, width):
        return x
    shape = (x.shape[0], height, width, x.shape[3])
    with jax.named_scope(INTERPOLATION_SCOPE):
        return jax.image.resize(x, shape, "bilinear", antialias=False)


class StochasticDepth(nn.Module):
    """Drops a residual branch for whole examples (Huang et al., 2016).

    Attributes:
      survival_probability: chance that an example keeps the branch. Kept branches are
        scaled by its inverse, so that evaluation needs no correction.
    """

    survival_probability: float

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Returns (batch, ...) with the branch of some examples set to zero."""
        if not train or self.survival_probability >= 1.0:
            return x
        key = self.make_rng("dropout")
        survival = jnp.float32(self.survival_probability)
        keep = jax.random.bernoulli(key, survival, (len(x), *(1,) * (x.ndim - 1)))
        return jnp.where(keep, x / self.survival_probability, jnp.zeros_like(x))


def linear_survival(index: int, count: int, final: float) -> float:
    """Survival probability of block `index` (from 1) of `count` by the linear rule.

    The first blocks nearly always survive; the last does with probability `final`
    (Huang et al., 2016, equation 4).
    """
    return 1.0 - index / count * (1.0 - final)
