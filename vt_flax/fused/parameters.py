"""Parameters of layers that are computed together with others.

A module here has the attributes and the parameter of a layer in `nn`, and returns the
kernel for a number of input channels instead of applying it.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vt_flax.nn.layers import conv_kernel, linear_kernel


class ConvKernel(nn.Module):
    """Kernel of a `Conv` of the same name."""

    features: int
    kernel: int

    @nn.compact
    def __call__(self, channels: int) -> jax.Array:
        """Returns (k, k, channels, features), float32."""
        return conv_kernel(self, channels)


class LinearKernel(nn.Module):
    """Kernel of a `Linear` of the same name."""

    features: int
    groups: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, channels: int) -> jax.Array:
        """Returns (groups, channels / groups, features / groups), of type `dtype`."""
        kernel = linear_kernel(self, channels).astype(self.dtype)
        return kernel if self.groups > 1 else kernel[None]
