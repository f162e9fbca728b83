"""TFDS datasets of images and masks, read by random access."""

import contextlib
from collections.abc import Sequence
from typing import Any

from vt_flax.data.mask_classes import MASK_PIXELS, find_classes, find_features
from vt_flax.data.mask_counts import MaskCounts
from vt_flax.data.masks import (
    IGNORE,
    decode_mask,
    histogram,
    is_gray_png,
)
from vt_flax.data.storage import how_to_prepare
from vt_flax.data.tfds_sources import TFDSSource, data_dir_of
from vt_flax.errors import UserError, first_names


class TFDSPairs(TFDSSource):
    """A split of a TFDS dataset of images and masks, in array_record.

    Args:
      builder: of a prepared dataset, from `sources.prepared_builder`.
      name: of the dataset, as the user wrote it.
      split: of the dataset, in the syntax of TFDS.
      mask_feature: the feature that holds the masks; empty for the only one.
      label_map: stored value i becomes label_map[i]: a class, or 255, which means no
        label. Empty for what is known of the dataset: classes as they are stored, or
        the map in `mask_classes`.
      num_classes: number of classes; 0 for as many as the dataset has names for, or the
        label map has classes.
      image_feature: the feature that holds the images; empty for `image`, or the only
        one.

    Attributes:
      class_names: a name for each class.
      mirrored: the class that each class becomes in a mirrored image; empty if none
        changes.
      label_map: (256,), uint8: what stored values become. Those that must not occur
        become 254, which is never a class, so that they can be found.
      stored: pixels of each stored value in the split or, of a slice, in the split that
        it is cut from; None if the dataset does not know.

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
        known = (builder.info.metadata or {}).get(MASK_PIXELS, {})
        # Of a sum such as `train[:9]+test` neither part says what the other has.
        pixels = known.get(split if "+" in split else split.partition("[")[0])
        self.stored = MaskCounts.of_pixels(pixels) if pixels else None
        if not is_gray_png(self.read([0])[0].label):
            raise UserError(
                f"dataset {name!r}: {keys[1]!r} is not stored as 8-bit grey PNGs,"
                " and TensorFlow would read other values than it has, such as a "
                "palette's colors; make an image_mask_folder of its images and masks"
            )


def notes_on_classes(source: TFDSPairs, masks: Sequence[bytes]) -> list[str]:
    """Returns notes on classes that have no labeled pixel in a split.

    A sample of the masks leaves that open, unless it has fewer than two classes; what
    the dataset knows of its own pixels is used instead.

    Args:
      source: the split.
      masks: all encoded masks of it, or a sample.

    Raises:
      UserError: if these are all, and no pixel is labeled.
    """
    counts = MaskCounts()
    for encoded in masks:
        # Decoding the example reports a mask that cannot be read.
        with contextlib.suppress(ValueError):
            counts.add(histogram(decode_mask(encoded)))
    if not counts.values():
        return []
    names, table = source.class_names, source.label_map
    is_sample = len(masks) < len(source)
    known = source.stored if is_sample and source.stored else counts
    absent = known.absent(table, names)
    if not absent or (is_sample and known is counts and len(absent) < len(names) - 1):
        return []
    if not is_sample and len(absent) == len(names):
        raise UserError(
            f"{source.name}: no pixel is labeled; the masks have {counts.describe()}"
        )
    where = " in a sample of its masks" if is_sample and known is counts else ""
    ignored = [value for value in counts.values() if table[value] == IGNORE]
    share = counts.pixels[ignored].sum() / counts.pixels.sum()
    hint = ""
    if share:
        hint = (
            f"; {share:.0%} of the pixels have no label (value "
            f"{first_names(map(str, ignored))}): if they are a class, see segmentation."
            "label_map, and --ignore_label of prepare_data"
        )
    return [
        f"{source.name} has no pixel of {len(absent)} of {len(names)} classes{where} "
        f"({first_names(absent)}){hint}"
    ]
