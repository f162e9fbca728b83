"""TFDS datasets of images and masks, read by random access."""

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from vt_flax.data.mask_classes import find_classes, find_features
from vt_flax.data.masks import (
    IGNORE,
    absent_classes,
    decode_mask,
    describe_pixels,
    histogram,
    is_gray_png,
)
from vt_flax.data.storage import how_to_prepare
from vt_flax.data.tfds_sources import TFDSSource, data_dir_of
from vt_flax.errors import UserError, first_names


class TFDSPairs(TFDSSource):
    """A split of a TFDS dataset of images and masks, in array_record.

    Args:
      builder, name, split: see `TFDSSource`.
      mask_feature, image_feature: see `mask_classes.find_features`.
      label_map, num_classes: see `mask_classes.find_classes`.

    Attributes:
      label_map: (256,), uint8: class of each stored value, 255 for no label, 254 for
        values that must not occur.

    Raises:
      UserError: if the dataset has no masks, its format has no random access, or it
        does not tell its classes and they are not given.
    """

    def __init__(
        self,
        builder: Any,
        name: str,
        split: str,
        mask_feature: str = "",
        label_map: Sequence[int] = (),
        num_classes: int = 0,
        image_feature: str = "",
    ):
        keys = find_features(builder, mask_feature, image_feature)
        classes = find_classes(builder, keys[1], label_map, num_classes)
        try:
            super().__init__(builder, name, split, keys)
        except NotImplementedError:
            raise UserError(
                f"dataset {name!r} is stored as {builder.info.file_format.value}, and "
                "segmentation needs random access: "
                f"{how_to_prepare(f'convert {name}', data_dir_of(builder))}"
            ) from None
        self.class_names, self.mirrored = classes.names, classes.mirrored
        self.label_map = classes.table
        self._choices = {"label_map": self.label_map.tolist()}
        if image_feature:
            self._choices["image_feature"] = image_feature
        if not is_gray_png(self.read([0])[0].label):
            raise UserError(
                f"dataset {name!r}: {keys[1]!r} is not stored as 8-bit gray PNGs,"
                " and TensorFlow would read other values than it has, such as a "
                "palette's colors; make an image_mask_folder of its images and masks"
            )


def notes_on_classes(source: TFDSPairs, masks: Sequence[bytes]) -> list[str]:
    """Returns a note on classes that have no labeled pixel in a split.

    A sample of the masks leaves that open, unless it has fewer than two classes.

    Args:
      source: the split.
      masks: all encoded masks of it, or a sample.

    Raises:
      UserError: if these are all, and no pixel is labeled.
    """
    pixels = np.zeros(256, np.int64)
    for encoded in masks:
        # Decoding the example reports a mask that cannot be read.
        with contextlib.suppress(ValueError):
            pixels += histogram(decode_mask(encoded))
    names, table = source.class_names, source.label_map
    is_sample = len(masks) < len(source)
    absent = absent_classes(pixels, table, names)
    if not pixels.any() or len(absent) < (len(names) - 1 if is_sample else 1):
        return []
    if not is_sample and len(absent) == len(names):
        raise UserError(
            f"{source.name}: no pixel is labeled; the masks have "
            f"{describe_pixels(pixels)}"
        )
    where = " in a sample of its masks" if is_sample else ""
    share = pixels[table == IGNORE].sum() / pixels.sum()
    hint = ""
    if share:
        hint = (
            f"; {share:.0%} of the pixels have no label: if they are a class, see "
            "segmentation.label_map, and --ignore_label of prepare_data"
        )
    return [
        f"{source.name} has no pixel of {len(absent)} of {len(names)} classes{where} "
        f"({first_names(absent)}){hint}"
    ]
