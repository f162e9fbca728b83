"""A 1 x 1 convolution and its batch normalisation in one: no map lies between them.

The mean and the variance of y = x W over the pixels follow from those of x:

    mean(y) = mean(x) W,    var(y) = diag(W^T cov(x) W),

with the covariance, (C, C), of the C channels. So W is multiplied by what normalisation
multiplies with before it is applied, and y itself is neither written nor read: in a
bottleneck, whose last convolution has four times as many outputs as inputs, its widest
map. The gradient by the statistics becomes one by the covariance, and leaves y alone
too: what a loss says of the factors is on the diagonal of W^T (x^T dy), and x^T dy is
needed for the gradient of W anyway.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vt_flax.nn.layers import pixel_product, precision_of, relu
from vt_flax.nn.moment_norm import MomentNorm
from vt_flax.nn.pointwise import widen


class GramNorm(MomentNorm):
    """`BatchNorm` of a 1 x 1 convolution, which it applies itself."""

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        kernel: jax.Array,
        *,
        train: bool,
        rectify: bool = False,
        in_one: bool = True,
    ) -> jax.Array:
        """Convolves and normalises.

        Args:
          x: (batch, H, W, C).
          kernel: (1, 1, C, features), float32.
          train: whether to use, and fold in, the statistics of this batch.
          rectify: whether max(x, 0) is to be taken for `x`.
          in_one: see `nn.pointwise.widen`.

        Returns:
          (batch, H, W, features) in the type of `x`.

        Raises:
          UserError: if the batch is not a whole number of groups.
        """
        given = x
        x = relu(x) if rectify else x

        def moments(origin, groups):
            mean, covariance = _covariance(x.reshape(groups, -1, *x.shape[1:]))
            weights, exact = kernel[0, 0], jax.lax.Precision.HIGHEST
            first = jnp.matmul(mean, weights, precision=exact) - origin
            spread = jnp.matmul(covariance, weights, precision=exact)
            return first, jnp.maximum(jnp.sum(weights * spread, axis=1), 0.0)

        variables = self._variables(kernel.shape[-1])
        affine = self._affine(variables, moments, x.shape[0], train)
        bias = affine.bias - affine.centre * affine.factor
        groups = affine.factor.shape[0]
        if groups == 1:
            kernel *= affine.factor
            return widen(given, kernel, bias, rectify=rectify, in_one=in_one)
        grouped = x.reshape(groups, -1, *x.shape[1:])
        scaled = (kernel * affine.factor)[:, 0].astype(x.dtype)
        out = jnp.einsum("gnhwc,gcf->gnhwf", grouped, scaled)
        out = (out.astype(jnp.float32) + bias[:, None]).astype(x.dtype)
        return out.reshape(*x.shape[:-1], -1)


def _covariance(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Means (groups, C) and covariances (groups, C, C) of (groups, ..., C), float32."""
    count = x[0, ..., 0].size
    mean = jnp.mean(x, axis=range(1, x.ndim - 1), dtype=jnp.float32)
    squares = jax.vmap(_gram)(x) / count
    return mean, squares - mean[:, :, None] * mean[:, None]


@jax.custom_vjp
def _gram(x: jax.Array) -> jax.Array:
    """x^T x, float32 (C, C), of (..., C)."""
    return pixel_product(x, x)


def _gram_forward(x):
    return _gram(x), x


def _gram_backward(x, cotangent):
    # In the type of x, or x would be read as float32.
    both = (cotangent + cotangent.T).astype(x.dtype)
    return (jnp.matmul(x, both, precision=precision_of(x)),)


_gram.defvjp(_gram_forward, _gram_backward)
