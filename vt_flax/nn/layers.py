"""Small layers shared by the networks: convolution, grouped map, resize, drop path."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vt_flax.errors import UserError

# Interpolation weights are applied as matrix products by `jax.image.resize`. They are
# not learned, and the paper's MACs leave them out: `analysis.macs` skips this scope.
INTERPOLATION_SCOPE = "interpolation"

# Products of attention that are written elementwise, and summed afterwards, stand in
# this scope: `analysis.macs` counts their multiplications.
PRODUCT_SCOPE = "attention_product"

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
        kernel = _ConvKernel(self.features, self.kernel, name="conv")(x.shape[-1])
        return convolve(x, kernel, self.stride, self.dtype)


class ConvKernel(nn.Module):
    """The kernel of a `Conv` of the same name, for those who apply it themselves.

    Attributes:
      features: output channels.
      kernel: odd kernel size in pixels.
    """

    features: int
    kernel: int

    @nn.compact
    def __call__(self, channels: int) -> jax.Array:
        """Returns (k, k, channels, features), float32."""
        return _ConvKernel(self.features, self.kernel, name="conv")(channels)


class _ConvKernel(nn.Module):
    features: int
    kernel: int

    @nn.compact
    def __call__(self, channels: int) -> jax.Array:
        shape = (self.kernel, self.kernel, channels, self.features)
        return self.param("kernel", conv_init, shape, jnp.float32)


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


def precision_of(x: jax.Array) -> jax.lax.Precision | None:
    """Returns with what precision to multiply `x`: float32 in full, others as usual."""
    return jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None


def pixel_product(x: jax.Array, y: jax.Array, dtype: Any = jnp.float32) -> jax.Array:
    """Sums x^T y over all axes but the last of (..., C) and (..., F).

    Returns:
      (C, F) of type `dtype`; float32 operands are multiplied in full.
    """
    pixels = tuple(range(x.ndim - 1))
    return jax.lax.dot_general(
        x,
        y,
        ((pixels, pixels), ((), ())),
        precision=precision_of(x),
        preferred_element_type=dtype,
    )


@jax.custom_jvp
def relu(x: jax.Array) -> jax.Array:
    """max(x, 0), whose derivative is read off the result, which is there anyway."""
    return jnp.maximum(x, 0)


relu.defjvps(lambda t, out, x: jnp.where(out > 0, t, 0))


class Linear(nn.Module):
    """A linear map of the last axis without bias; grouped: block diagonal.

    A grouped 1 x 1 map is one batched matrix product over blocks, not a grouped
    convolution, which TPUs and GPUs run far below their matrix rate.

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
        kernel = _linear_kernel(self, x.shape[-1]).astype(self.dtype)
        x = x.astype(self.dtype)
        if self.groups == 1:
            return x @ kernel
        blocks = x.reshape(*x.shape[:-1], self.groups, x.shape[-1] // self.groups)
        out = jnp.einsum("...gi,gio->...go", blocks, kernel)
        return out.reshape(*x.shape[:-1], self.features)


class LinearKernel(nn.Module):
    """The kernel of a `Linear` of the same name, for those who apply it themselves.

    Attributes:
      features: output channels.
      groups: number of diagonal blocks.
      dtype: type of the result; the parameter is float32.
    """

    features: int
    groups: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, channels: int) -> jax.Array:
        """Returns (groups, channels / groups, features / groups).

        Raises:
          UserError: if the groups do not divide both channel counts.
        """
        kernel = _linear_kernel(self, channels).astype(self.dtype)
        return kernel if self.groups > 1 else kernel[None]


def _linear_kernel(module: Linear | LinearKernel, channels: int) -> jax.Array:
    """Returns a module's parameter `kernel`, float32, for `channels` inputs."""
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
    """Resizes (batch, H, W, C) bilinearly, half-pixel centres, without antialiasing.

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
        keep = self._keep(x.shape[0], train)
        if keep is None:
            return x
        keep = keep.reshape(-1, *(1,) * (x.ndim - 1))
        return jnp.where(keep, x / self.survival_probability, jnp.zeros_like(x))

    def shares(self, batch: int, *, train: bool) -> jax.Array | None:
        """Returns what branches are to be multiplied with; None for all with 1.

        Returns:
          (batch,), float32: 0, or the inverse of the probability.
        """
        keep = self._keep(batch, train)
        return None if keep is None else keep / jnp.float32(self.survival_probability)

    def _keep(self, batch: int, train: bool) -> jax.Array | None:
        if not train or self.survival_probability >= 1.0:
            return None
        key = self.make_rng("dropout")
        survival = jnp.float32(self.survival_probability)
        return jax.random.bernoulli(key, survival, (batch,))


def linear_survival(index: int, count: int, final: float) -> float:
    """Survival probability of block `index` (from 1) of `count` by the linear rule.

    The first blocks nearly always survive; the last does with probability `final`
    (Huang et al., 2016, equation 4).
    """
    return 1.0 - index / count * (1.0 - final)
