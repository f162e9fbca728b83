"""Augmentation of images with their masks on the device, inside the step."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vt_flax.data import augment
from vt_flax.data.augment.jitter import Jitter, apply_jitter, draw_jitter
from vt_flax.data.augment.resampling import (
    EXACT,
    linear_weights,
    nearest_weights,
    resample,
    resized_size,
    select,
)
from vt_flax.data.masks import IGNORE

# Number of crops that are drawn for each example.
TRIES = 10


class Draw(NamedTuple):
    """Random draws of each example.

    Attributes:
      resized: int32, (batch, 2): height and width after resizing.
      starts: int32, (batch, TRIES, 2): first row and column of each crop; negative
        where the crop is larger than the example.
      mirrored: bool, (batch,).
      jitter: of the colors.
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

    Takes the first of the drawn crops in which no class has more than `max_class_share`
    of the labeled pixels. A crop that is larger than the resized example is filled with
    the mean color and no label.

    Args:
      images: uint8, (batch, H, W, 3), each example in the upper left corner.
      labels: uint8, (batch, H, W): classes, and 255 for no label.
      sizes: int32, (batch, 2): height and width of each example.
      config: the whole configuration: section `segmentation`, and of `data` the keys
        `flip`, `mean` and `std`.
      key: one key for the batch; each example draws from its own, so that the result
        does not depend on the sharding.
      mirrored: the class that each class becomes in a mirrored image, such as the right
        arm for the left one; empty if classes have no sides.

    Returns:
      Images, float32 (batch, h, w, 3), bilinear and antialiased, and labels, uint8
      (batch, h, w), of nearest pixels; both of the crop's size.
    """
    settings = config.segmentation
    drawn = draw(jax.random.split(key, len(images)), sizes, config)
    canvas = labels.shape[1:]

    def matrices(weights, starts, resized, sizes, flipped=False, **options):
        """Yields matrices of the rows, which are not mirrored, and of the columns."""
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

    crop = (starts, drawn.resized, sizes, drawn.mirrored)
    images = resample(images, *matrices(linear_weights, *crop, antialias=True))
    rows, columns = matrices(nearest_weights, *crop)
    labels = select(labels, rows, columns)
    inside = rows.any(-1)[:, :, None] & columns.any(-1)[:, None, :]

    images = apply_jitter(images, inside, drawn.jitter, settings)
    images = augment.normalize(images, config.data)
    images = jnp.where(inside[..., None], images, 0)
    return images, _exchange(labels, drawn.mirrored, mirrored)


def draw(keys: jax.Array, sizes: jax.Array, config: ConfigDict) -> Draw:
    """Draws scale, crops, mirroring and colors of each example.

    Args:
      keys: (batch,) keys.
      sizes: int32, (batch, 2): height and width of each example.
      config: the whole configuration.
    """
    settings = config.segmentation
    # A key for each purpose: enabling one does not change the draws of another.
    keys = jax.vmap(lambda key: jax.random.split(key, 7))(keys)
    scale, start, flip = jnp.unstack(keys[:, :3], axis=1)

    def geometry(scale: jax.Array, start: jax.Array, size: jax.Array):
        factor = jax.random.uniform(
            scale, minval=settings.scale_min, maxval=settings.scale_max
        )
        if settings.short_side:
            factor = factor * settings.short_side / jnp.maximum(size.min(), 1)
        resized = resized_size(size, factor)
        # All positions in which the crop or the example lies within the other.
        rest = resized - jnp.asarray(settings.crop)
        low, high = jnp.minimum(rest, 0), jnp.maximum(rest, 0)
        return resized, jax.random.randint(start, (TRIES, 2), low, high + 1)

    resized, starts = jax.vmap(geometry)(scale, start, sizes)
    if config.data.flip:
        mirrored = jax.vmap(jax.random.bernoulli)(flip)
    else:
        mirrored = jnp.zeros(len(keys), bool)
    return Draw(resized, starts, mirrored, draw_jitter(keys[:, 3:], settings))


def first_mixed(
    labels: jax.Array, rows: jax.Array, columns: jax.Array, max_share: float
) -> jax.Array:
    """Returns the first crop in which no class has more than a share of the labels.

    Args:
      labels: uint8, (batch, H, W).
      rows: float32, (batch, crops, H): how many of a crop's rows come from each row.
      columns: float32, (batch, crops, W), likewise.
      max_share: largest share of the labeled pixels, 0.5 to 1.

    Returns:
      int32, (batch,): index of the crop; the last one if there is no such crop. A crop
      without labels is none.
    """
    labeled, largest = count_largest(labels, rows, columns)
    # Both are integers below 2^24, exact in float32.
    mixed = (largest <= max_share * labeled) & (labeled > 0)
    last = rows.shape[1] - 1
    return jnp.where(mixed.any(1), jnp.argmax(mixed, 1), last).astype(jnp.int32)


def count_largest(
    labels: jax.Array, rows: jax.Array, columns: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Counts the labeled pixels of each crop, and those of its majority class.

    A count is a product of the crop's rows, a 0-1 plane of the mask and the crop's
    columns. Instead of one plane for each of up to 255 classes, eight find the majority
    of each bit of the class, which is the class if it has more than half of the pixels;
    a ninth counts it.

    Returns:
      float32, (batch, crops): the number of labeled pixels, and that of the class that
      has more than half of them; if none has, of any class or 0.
    """

    def count(plane: jax.Array) -> jax.Array:
        plane = plane.astype(jnp.float32)
        # A row may be repeated 300 times, which bfloat16 rounds.
        plane = jnp.einsum("bky,byx->bkx", rows, plane, precision=EXACT)
        return (plane * columns).sum(-1)

    known = labels != IGNORE
    labeled = count(known)
    kind = jnp.zeros(labeled.shape, jnp.int32)
    for bit in range(8):
        ones = count(known & (labels >> bit & 1 == 1))
        kind += (2 * ones > labeled).astype(jnp.int32) << bit
    planes = labels[:, None] == kind[:, :, None, None]
    planes = (planes & known[:, None]).astype(jnp.float32)
    largest = jnp.einsum("bky,bkyx->bkx", rows, planes, precision=EXACT)
    return labeled, (largest * columns).sum(-1)


def _exchange(
    labels: jax.Array, where: jax.Array, mirrored: Sequence[int]
) -> jax.Array:
    """Replaces the classes of mirrored examples."""
    exchanged = labels
    # Few classes have a left and a right, and TPUs gather slowly.
    for old, new in enumerate(mirrored):
        if new != old:
            exchanged = jnp.where(labels == old, jnp.uint8(new), exchanged)
    return jnp.where(where[:, None, None], exchanged, labels)
