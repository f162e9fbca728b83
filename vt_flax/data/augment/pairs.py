"""What is done to images and their masks together, on the device, inside the step."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vt_flax.data import augment
from vt_flax.data.augment.crops import first_mixed
from vt_flax.data.augment.jitter import FACTORS, Jitter, apply_jitter, draw_jitter
from vt_flax.data.augment.resampling import (
    linear_weights,
    nearest_weights,
    resample,
    resized_size,
    select,
)
from vt_flax.data.augment.scaled import base_size, eval_canvas
from vt_flax.errors import UserError

# Draws of a crop, of which the first without too much of one class is taken.
TRIES = 10


class Draw(NamedTuple):
    """What is drawn for each example.

    Attributes:
      resized: int32, (batch, 2): height and width that it is resized to.
      starts: int32, (batch, TRIES, 2): where crops begin in that; negative where the
        crop is larger, and begins before it.
      mirrored: bool, (batch,).
      jitter: of its colours.
    """

    resized: jax.Array
    starts: jax.Array
    mirrored: jax.Array
    jitter: Jitter


def check_config(config: ConfigDict) -> None:
    """Checks the section `segmentation`, and that `data` asks for nothing beside it.

    Args:
      config: the whole configuration.

    Raises:
      UserError: for a value that nothing can be done with.
    """
    settings = config.segmentation
    for key, least in (
        ("canvas", 1),
        ("crop", 1),
        ("eval_canvas", 0),
        ("eval_size", 0),
    ):
        sides = settings[key]
        if len(sides) != 2 or not all(type(n) is int and n >= least for n in sides):
            raise UserError(
                f"segmentation.{key} {list(sides)}: write height and width in pixels, "
                f"at least {least}"
            )
    if settings.short_side < 0:
        raise UserError(
            f"segmentation.short_side {settings.short_side}: must be at least 0"
        )
    sides = base_size(eval_canvas(config), config)
    if settings.short_side > min(sides):
        raise UserError(
            f"segmentation.short_side {settings.short_side} does not fit the "
            f"{sides[0]} x {sides[1]} pixels that the network gets in evaluation: "
            "raise segmentation.eval_size"
        )
    low, high = settings.scale_min, settings.scale_max
    if not 0 < low <= high < math.inf:
        raise UserError(
            f"segmentation.scale_min {low} and scale_max {high}: must be over 0, and "
            "the second no less than the first"
        )
    if not 0 < settings.max_class_share <= 1:
        raise UserError(
            f"segmentation.max_class_share {settings.max_class_share}: must be over 0, "
            "and at most 1"
        )
    for key in FACTORS:
        if not 0 <= settings[key] < math.inf:
            raise UserError(f"segmentation.{key} {settings[key]}: must be at least 0")
    if not 0 <= settings.hue <= 0.5:
        raise UserError(f"segmentation.hue {settings.hue}: must be from 0 to 0.5")
    scales = settings.eval_scales
    if not scales or not all(
        type(scale) in (int, float) and 0 < scale < math.inf for scale in scales
    ):
        raise UserError(
            f"segmentation.eval_scales {list(scales)}: write numbers over 0, as in "
            "[0.75,1.0,1.25]"
        )
    for key, off in (("augment", "none"), ("erasing", 0), ("mixup", 0), ("cutmix", 0)):
        if config.data[key] != off:
            raise UserError(
                f"data.{key} {config.data[key]}: is for classification; of masks, "
                f"section segmentation decides: set it to {off}"
            )


def augment_pairs(
    images: jax.Array,
    labels: jax.Array,
    sizes: jax.Array,
    config: ConfigDict,
    key: jax.Array,
    mirrored: Sequence[int] = (),
) -> tuple[jax.Array, jax.Array]:
    """Resizes, crops and mirrors images with their masks, jitters colours, normalises.

    Of the crops that are drawn the first is taken in which something is labelled, and
    no class has more than `max_class_share` of what is; where none is such, the last. A
    crop that is larger than the resized example holds it at a random place, and around
    it the mean colour and no label.

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
    images = augment.normalise(images, config.data)
    images = jnp.where(inside[..., None], images, 0)
    return images, _exchange(labels, drawn.mirrored, mirrored)


def draw(keys: jax.Array, sizes: jax.Array, config: ConfigDict) -> Draw:
    """Draws for each example: its scale, crops, whether it is mirrored, its colours.

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
