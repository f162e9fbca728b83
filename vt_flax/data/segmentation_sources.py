"""TFDS datasets of images and masks, read by random access."""

from collections.abc import Sequence
from typing import Any

from vt_flax.data.host import tensorflow
from vt_flax.data.mask_classes import MASK_PIXELS, find_classes, find_features
from vt_flax.data.mask_counts import MaskCounts
from vt_flax.data.masks import (
    IGNORE,
    decode_mask,
    histogram,
    is_gray_png,
)
from vt_flax.data.splits import check_tfds_split
from vt_flax.data.storage import how_to_prepare
from vt_flax.data.tfds_sources import TFDSRecords, data_dir_of
from vt_flax.errors import UserError, first_names


class TFDSPairs(TFDSRecords):
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
      UserError: if the dataset is no such one, its format has no random access, or
        something is not given that it does not tell.
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
        from tensorflow_datasets.core.file_adapters import FileFormat

        keys = find_features(builder, mask_feature, image_feature)
        self._image_feature = image_feature
        classes = find_classes(builder, keys[1], label_map, num_classes)
        self.class_names = classes.names
        self.mirrored = classes.mirrored
        self.label_map = classes.table
        if FileFormat.ARRAY_RECORD not in builder.info.available_file_formats():
            raise UserError(
                f"dataset {name!r} is stored as {builder.info.file_format.value}, and "
                "segmentation needs random access: "
                f"{how_to_prepare(f'convert {name}', data_dir_of(builder))}"
            )
        check_tfds_split(builder, name, split)
        super().__init__(builder, name, split, keys)
        known = (builder.info.metadata or {}).get(MASK_PIXELS, {})
        # Of a sum such as `train[:9]+test` neither part says what the other has.
        pixels = known.get(split if "+" in split else split.partition("[")[0])
        self.stored = MaskCounts.of_pixels(pixels) if pixels else None
        if not is_gray_png(self.read([0])[0].label):
            raise UserError(
                f"dataset {name!r}: {keys[1]!r} is not stored as 8-bit grey PNGs,"
                " and TensorFlow would read other values than it has, such as a "
                "palette's colours; make an image_mask_folder of its images and masks"
            )

    def identity(self) -> dict[str, Any]:
        """Returns what makes the split the one it is: see `Source.identity`."""
        chosen = self._image_feature
        features = {"image_feature": chosen} if chosen else {}
        label_map = {"label_map": self.label_map.tolist()}
        return super().identity() | label_map | features

    def label_feature(self) -> Any:
        """Returns how TensorFlow reads the mask of a record."""
        tf = tensorflow()
        return tf.io.FixedLenFeature((), tf.string)


def notes_on_classes(source: TFDSPairs, masks: Sequence[bytes]) -> list[str]:
    """Returns notes on classes that have no labeled pixel in a split.

    Where the masks are a sample and the dataset does not know its pixels, a note is
    returned only if the sample has fewer than two classes.

    Args:
      source: the split.
      masks: all encoded masks of it, or a sample.

    Raises:
      UserError: if these are all, and no pixel is labeled.
    """
    counts = MaskCounts()
    for encoded in masks:
        try:
            counts.add(histogram(decode_mask(encoded)))
        except ValueError:
            continue  # decoding the example reports it
    if not counts.values():
        return []
    names, table = source.class_names, source.label_map
    absent, where = counts.absent(table, names), ""
    if len(masks) < len(source):
        known = source.stored.absent(table, names) if source.stored else []
        if not known and len(absent) > len(names) - 2:
            where = f" in the {len(masks)} masks of a sample"
        else:
            absent = known
    elif len(absent) == len(names):
        raise UserError(
            f"{source.name}: no pixel is labeled; the masks have {counts.describe()}"
        )
    if not absent:
        return []
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
