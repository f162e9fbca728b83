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

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from vt_flax.fused.moment_norm import MomentNorm
from vt_flax.fused.pointwise import widen
from vt_flax.nn.layers import pixel_product, relu


@flax.struct.dataclass
class Folded:
    """A 1 x 1 convolution with its normalisation in it.

    Attributes:
      kernel: (groups, 1, C, features), float32; one group is for all examples.
      bias: (groups, parts, features), float32: one part for each map that is convolved.
      grain: see `fused.pointwise.widen`.
    """

    kernel: jax.Array
    bias: jax.Array
    grain: int = flax.struct.field(pytree_node=False)

    def beside(self, other: "Folded") -> "Folded":
        """Returns the sum of both, of maps whose channels are put one after another."""
        return Folded(
            jnp.concatenate([self.kernel, other.kernel], axis=2),
            jnp.concatenate([self.bias, other.bias], axis=1),
            min(self.grain, other.grain),
        )

    def __call__(
        self, x: jax.Array, shares: jax.Array | None = None, *, rectify: bool = False
    ) -> jax.Array:
        """Convolves.

        Args:
          x: (batch, H, W, C).
          shares: of each map's bias that each example gets, (batch, parts), float32;
            None for all of all.
          rectify: whether max(x, 0) is to be taken for `x`.

        Returns:
          (batch, H, W, features) in the type of `x`.
        """
        groups = len(self.kernel)
        if groups == 1:
            return widen(
                x, self.kernel, self.bias, shares, rectify=rectify, grain=self.grain
            )
        x = relu(x) if rectify else x
        if shares is None:
            shares = jnp.ones((x.shape[0], self.bias.shape[1]), jnp.float32)
        grouped = x.reshape(groups, -1, *x.shape[1:])
        kernel = self.kernel[:, 0].astype(x.dtype)
        out = jnp.einsum("gnhwc,gcf->gnhwf", grouped, kernel).astype(jnp.float32)
        out += jnp.einsum(
            "gnp,gpf->gnf", shares.reshape(groups, -1, shares.shape[1]), self.bias
        )[:, :, None, None]
        return out.astype(x.dtype).reshape(*x.shape[:-1], -1)


class GramNorm(MomentNorm):
    """`BatchNorm` of a 1 x 1 convolution, which it takes into itself."""

    @nn.compact
    def __call__(self, x: jax.Array, kernel: jax.Array, *, train: bool) -> Folded:
        """Returns the convolution with what normalises its result.

        Args:
          x: what is convolved, (batch, H, W, C).
          kernel: (1, 1, C, features), float32.
          train: whether to use, and fold in, the statistics of this batch.

        Raises:
          UserError: if the batch is not a whole number of groups.
        """

        def moments(origin, groups):
            mean, covariance = _covariance(x.reshape(groups, -1, *x.shape[1:]))
            weights, exact = kernel[0, 0], jax.lax.Precision.HIGHEST
            first = jnp.matmul(mean, weights, precision=exact) - origin
            spread = jnp.matmul(covariance, weights, precision=exact)
            return first, jnp.maximum(jnp.sum(weights * spread, axis=1), 0.0)

        variables = self._variables(kernel.shape[-1])
        affine = self._affine(variables, moments, x.shape[0], train)
        bias = affine.bias - affine.centre * affine.factor
        return Folded(kernel * affine.factor, bias[:, 0], x.shape[-1])


def _covariance(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Means (groups, C) and covariances (groups, C, C) of (groups, ..., C), float32."""
    count = x[0, ..., 0].size
    mean = jnp.mean(x, axis=range(1, x.ndim - 1), dtype=jnp.float32)
    squares = jax.vmap(_gram)(x) / count
    return mean, squares - mean[:, :, None] * mean[:, None]


@jax.custom_jvp
def _gram(x: jax.Array) -> jax.Array:
    """x^T x, float32 (C, C), of (..., C)."""
    return pixel_product(x, x)


@_gram.defjvp
def _gram_jvp(primals, tangents):
    (x,), (tangent,) = primals, tangents
    # A product in the type of x, so that its transpose does not read x as float32.
    half = pixel_product(tangent, x, x.dtype).astype(jnp.float32)
    return _gram(x), half + half.T
