"""Mixup, CutMix and random erasing, drawn for each example."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

# Of random erasing (Zhong et al., 2017): share of the area, and height over width.
ERASED_AREA = (0.02, 1 / 3)
ERASED_RATIO = (0.3, 1 / 0.3)
# Candidate rectangles, of which the first that fits is taken.
TRIES = 10


class Targets(NamedTuple):
    """Labels of examples, which may be mixed.

    Attributes:
      labels: int32, (batch, 1 or 2): an example's own, and its partner's.
      weights: float32, like `labels`: the share of each; they sum to 1.
    """

    labels: jax.Array
    weights: jax.Array


def mix(
    images: jax.Array, labels: jax.Array, config: ConfigDict, keys: jax.Array
) -> tuple[jax.Array, Targets]:
    """Mixes each example with its neighbor (Zhang et al., 2017; Yun et al., 2019).

    Examples 2i and 2i + 1 are partners: the order is random already, and no image
    leaves its device as long as a device has an even number. Where both kinds are
    configured each example takes one of them, either as likely.

    Args:
      images: float32, (batch, H, W, 3), the batch even.
      labels: int32, (batch,).
      config: the section `data`: `mixup` and `cutmix` are the two parameters of the
        Beta distribution that the share is drawn from; 0 is off.
      keys: (batch,) keys.
    """
    partners = _swap(images)
    size = images.shape[1:3]

    def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the weight of an example's own pixels, (H, W), and label."""
        kind, mixup, cutmix = jax.random.split(key, 3)
        plain = cut = None
        if config.mixup:
            plain = jax.random.beta(mixup, config.mixup, config.mixup)
        if config.cutmix:
            cut = ~_cut(cutmix, config.cutmix, size)
        if cut is None:
            return jnp.full(size, plain), plain
        share = cut.mean(dtype=jnp.float32)
        if plain is None:
            return cut.astype(jnp.float32), share
        chosen = jax.random.bernoulli(kind)
        own = jnp.where(chosen, plain, cut.astype(jnp.float32))
        return own, jnp.where(chosen, plain, share)

    own, share = jax.vmap(one)(keys)
    mixed = own[..., None] * images + (1 - own[..., None]) * partners
    both = jnp.stack([labels, _swap(labels)], 1)
    return mixed, Targets(both, jnp.stack([share, 1 - share], 1))


def erase(images: jax.Array, probability: float, keys: jax.Array) -> jax.Array:
    """Erases a rectangle of some images (Zhong et al., 2017).

    What is erased becomes 0, the mean of normalized images; the paper prefers noise by
    0.1 to 0.2 points.

    Args:
      images: normalized, (batch, H, W, 3).
      probability: share of the images that lose a rectangle.
      keys: (batch,) keys.
    """
    height, width = images.shape[1:3]

    def one(key: jax.Array) -> jax.Array:
        chosen, area, ratio, place = jax.random.split(key, 4)
        low, high = ERASED_AREA
        area = jax.random.uniform(area, (TRIES,), minval=low, maxval=high)
        area = area * height * width
        low, high = jnp.log(jnp.asarray(ERASED_RATIO))
        ratio = jnp.exp(jax.random.uniform(ratio, (TRIES,), minval=low, maxval=high))
        h, w = jnp.round(jnp.sqrt(area * ratio)), jnp.round(jnp.sqrt(area / ratio))
        fits = (h < height) & (w < width)
        first = jnp.argmax(fits)
        h, w = h[first], w[first]
        top, left = jax.random.uniform(place, (2,)) * jnp.stack(
            [height - h + 1, width - w + 1]
        )
        box = _box(jnp.floor(top), jnp.floor(left), h, w, (height, width))
        return box & fits.any() & jax.random.bernoulli(chosen, probability)

    return jnp.where(jax.vmap(one)(keys)[..., None], 0.0, images)


def _cut(key: jax.Array, alpha: float, size: tuple[int, int]) -> jax.Array:
    """Draws CutMix's rectangle: (H, W), True where the partner's pixels go."""
    share, place = jax.random.split(key)
    side = jnp.sqrt(1 - jax.random.beta(share, alpha, alpha))
    sizes = jnp.asarray(size, jnp.float32)
    # Around a center anywhere in the image, and cut off at its border.
    extent = jnp.floor(sizes * side)
    start = jnp.floor(sizes * jax.random.uniform(place, (2,))) - extent // 2
    return _box(start[0], start[1], extent[0], extent[1], size)


def _box(top, left, height, width, size: tuple[int, int]) -> jax.Array:
    y, x = jnp.arange(size[0])[:, None], jnp.arange(size[1])[None, :]
    return (y >= top) & (y < top + height) & (x >= left) & (x < left + width)


def _swap(values: jax.Array) -> jax.Array:
    """Exchanges each example with its neighbor."""
    pairs = values.reshape(len(values) // 2, 2, *values.shape[1:])
    return pairs[:, ::-1].reshape(values.shape)
