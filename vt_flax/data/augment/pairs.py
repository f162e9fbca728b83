"""Augmentation of images with their masks on the device, inside the step."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vt_flax.data import augment
from vt_flax.data.augment.crops import first_mixed
from vt_flax.data.augment.jitter import Jitter, apply_jitter, draw_jitter
from vt_flax.data.augment.resampling import (
    linear_weights,
    nearest_weights,
    resample,
    resized_size,
    select,
)

# Draws of a crop, of which the first without too much of one class is taken.
TRIES = 10


class Draw(NamedTuple):
    """Random draws of each example.

    Attributes:
      resized: int32, (batch, 2): height and width that it is resized to.
      starts: int32, (batch, TRIES, 2): where crops begin in that; negative where the
        crop is larger, and begins before it.
      mirrored: bool, (batch,).
      jitter: of its colors.
    """

    resized: jax.Array
    starts: jax.Array
    mirrored: jax.Array
    jitter: Jitter


def augment_pairs(
    images: jax.Array,
    labels: jax.Array,
    sizes: jax.Array,
    config: ConfigDict,
    key: jax.Array,
    mirrored: Sequence[int] = (),
) -> tuple[jax.Array, jax.Array]:
    """Resizes, crops and mirrors images with their masks, jitters colors, normalizes.

    Of the crops that are drawn the first is taken in which something is labeled, and
    no class has more than `max_class_share` of what is; where none is such, the last. A
    crop that is larger than the resized example holds it at a random place, and around
    it the mean color and no label.

    Args:
      images: uint8, (batch, H, W, 3), each example in the upper left corner.
      labels: uint8, (batch, H, W): classes, and 255 for no label.
      sizes: int32, (batch, 2): height and width of each example.
      config: the whole configuration: section `segmentation`, and of `data` the keys
        `flip`, `mean` and `std`.
      key: one key for the batch; every example gets its own from it, so that the
        result does not depend on how the batch lies on the devices.
      mirrored: the class that each class becomes in a mirrored image: a left arm is
        then a right one. Empty: itself.

    Returns:
      Images, float32 (batch, h, w, 3), and labels, uint8 (batch, h, w), of the crop's
      size. Images are antialiased and bilinear; labels are those of nearest pixels.
    """
    settings = config.segmentation
    drawn = draw(jax.random.split(key, len(images)), sizes, config)
    canvas = labels.shape[1:]

    def matrices(weights, starts, resized, sizes, flipped=False, **options):
        """Yields those of the rows, which are not mirrored, and of the columns."""
        for axis, mirrored in enumerate((False, flipped)):
            yield weights(
                *(values[..., axis] for values in (starts, resized, sizes)),
                settings.crop[axis],
                canvas[axis],
                mirrored=mirrored,
                **options,
            )

    starts = drawn.starts[:, 0]
    if settings.max_class_share < 1:
        tries = (drawn.starts, drawn.resized[:, None], sizes[:, None])
        rows, columns = (m.sum(-2) for m in matrices(nearest_weights, *tries))
        chosen = first_mixed(labels, rows, columns, settings.max_class_share)
        starts = jnp.take_along_axis(drawn.starts, chosen[:, None, None], 1)[:, 0]

    piece = (starts, drawn.resized, sizes, drawn.mirrored)
    images = resample(images, *matrices(linear_weights, *piece, antialias=True))
    rows, columns = matrices(nearest_weights, *piece)
    labels = select(labels, rows, columns)
    inside = rows.any(-1)[:, :, None] & columns.any(-1)[:, None, :]

    images = apply_jitter(images, inside, drawn.jitter, settings)
    images = augment.normalize(images, config.data)
    images = jnp.where(inside[..., None], images, 0)
    return images, _exchange(labels, drawn.mirrored, mirrored)


def draw(keys: jax.Array, sizes: jax.Array, config: ConfigDict) -> Draw:
    """Draws for each example: its scale, crops, whether it is mirrored, its colors.

    Args:
      keys: (batch,) keys.
      sizes: int32, (batch, 2): height and width of each example.
      config: the whole configuration.
    """
    settings = config.segmentation
    # A key for each purpose: to switch one on does not change the draws of another.
    keys = jax.vmap(lambda key: jax.random.split(key, 7))(keys)
    scale, place, flip = jnp.unstack(keys[:, :3], axis=1)

    def geometry(scale: jax.Array, place: jax.Array, size: jax.Array):
        factor = jax.random.uniform(
            scale, minval=settings.scale_min, maxval=settings.scale_max
        )
        if settings.short_side:
            factor = factor * settings.short_side / jnp.maximum(size.min(), 1)
        resized = resized_size(size, factor)
        # All places in which one of the two lies within the other.
        rest = resized - jnp.asarray(settings.crop)
        low, high = jnp.minimum(rest, 0), jnp.maximum(rest, 0)
        return resized, jax.random.randint(place, (TRIES, 2), low, high + 1)

    resized, starts = jax.vmap(geometry)(scale, place, sizes)
    if config.data.flip:
        mirrored = jax.vmap(jax.random.bernoulli)(flip)
    else:
        mirrored = jnp.zeros(len(keys), bool)
    return Draw(resized, starts, mirrored, draw_jitter(keys[:, 3:], settings))


def _exchange(
    labels: jax.Array, where: jax.Array, mirrored: Sequence[int]
) -> jax.Array:
    """Gives the classes of mirrored examples their new numbers."""
    exchanged = labels
    # A few comparisons, as few classes have a left and a right; TPUs gather slowly.
    for old, new in enumerate(mirrored):
        if new != old:
            exchanged = jnp.where(labels == old, jnp.uint8(new), exchanged)
    return jnp.where(where[:, None, None], exchanged, labels)
