"""Builder of segmentation datasets from pairs of an image and a mask."""

import abc
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from vt_flax.data.mask_classes import CLASS_NAMES
from vt_flax.data.masks import (
    IGNORE,
    NO_CLASS,
    decode_mask,
    encode_mask,
    is_gray_png,
    label_table,
    values_in,
)
from vt_flax.data.orientation import UPRIGHT, orientation_in
from vt_flax.data.pillow_decoder import decode_with_pillow
from vt_flax.data.prepare.pair_files import Pair
from vt_flax.data.prepare.workspace import in_threads
from vt_flax.errors import UserError

IMAGE, MASK = "image", "segmentation_label"


class Listing(NamedTuple):
    """The content of a folder of manual files."""

    splits: Mapping[str, Sequence[Pair]]
    class_names: Sequence[str]
    # Class of each stored value, or 255; empty if the values are the classes.
    label_map: Sequence[int] = ()
    # Entries of the dataset's metadata, beside the names.
    metadata: Mapping[str, Any] = {}


class PairsBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Builder of a dataset of images and masks; subclasses list their pairs.

    Images go into the records as they are, and are used as they are stored, whatever
    their EXIF orientation: public datasets drew their masks on the stored pixels. Masks
    are stored as 8-bit gray PNGs of class indices and 255, which means no label.

    Attributes:
      PALETTES: whether masks may be palette PNGs, whose indices are the labels.
      ANY_ORIENTATION: whether files may have an EXIF orientation that is not upright.
      HINT: what to do about values that are no classes.
    """

    PALETTES = True
    ANY_ORIENTATION = True
    HOMEPAGE = ""
    HINT = ""

    @abc.abstractmethod
    def list_pairs(self, manual: epath.Path) -> Listing:
        """Returns the content of the folder of manual files.

        Raises:
          UserError: if files do not fit each other.
          FileNotFoundError: if one is missing.
        """

    def _values(self, pair: Pair, encoded: bytes) -> np.ndarray:
        """Decodes a mask to its values (height, width), uint8.

        Raises:
          ValueError: if it cannot be read.
        """
        return decode_mask(encoded, self.PALETTES, any_gray=True)

    def _info(self) -> tfds.core.DatasetInfo:
        return pairs_info(self, homepage=self.HOMEPAGE or None)

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        try:
            listing = self.list_pairs(dl_manager.manual_dir)
        except FileNotFoundError as error:
            wanted = " ".join(self.MANUAL_DOWNLOAD_INSTRUCTIONS.split())
            raise UserError(
                f"{error.filename or error} is not there; wanted is: {wanted}"
            ) from error
        self.info.metadata[CLASS_NAMES] = list(listing.class_names)
        self.info.metadata.update(listing.metadata)
        table = label_table(listing.label_map or range(len(listing.class_names)))
        return {
            split: self._generate_examples(pairs, table)
            for split, pairs in listing.splits.items()
        }

    def _generate_examples(
        self, pairs: Sequence[Pair], table: np.ndarray
    ) -> Iterator[tuple[str, dict]]:
        examples = in_threads(lambda pair: self._example(pair, table), pairs)
        for pair, (image, mask) in zip(pairs, examples, strict=True):
            yield pair.name, {IMAGE: image, MASK: mask}

    def _example(self, pair: Pair, table: np.ndarray) -> tuple[bytes, bytes]:
        """Returns an image and its mask, both encoded."""
        image, (encoded, values) = self._read(pair.image), self.read_mask(pair)
        try:
            width, height = decode_with_pillow(image).size
        except ValueError as error:
            reason = str(error).partition(" <_io.BytesIO")[0]
            raise UserError(f"{pair.image}: not a readable image ({reason})") from error
        if values.shape != (height, width):
            raise UserError(
                f"{pair.mask} has {values.shape[1]} x {values.shape[0]} pixels, its "
                f"image {pair.image} {width} x {height}"
            )
        found = values_in(values)
        labels = table[found]
        if NO_CLASS in labels:
            raise UserError(
                f"{pair.mask}: value {found[labels == NO_CLASS][0]} is none of the "
                f"{len({*table} - {NO_CLASS, IGNORE})} classes, nor {IGNORE} for no "
                f"label{self.HINT}"
            )
        if not is_gray_png(encoded) or (labels != found).any():
            encoded = encode_mask(table[values])
        return image, encoded

    def read_mask(self, pair: Pair) -> tuple[bytes, np.ndarray]:
        """Returns a mask's file and its values (height, width), uint8.

        Raises:
          UserError: if it cannot be read.
        """
        encoded = self._read(pair.mask)
        try:
            return encoded, self._values(pair, encoded)
        except ValueError as error:
            raise UserError(f"{pair.mask}: {error}") from error

    def _read(self, path: epath.Path) -> bytes:
        encoded = path.read_bytes()
        # Tools that draw masks disagree on whether they turn the image; both may have
        # the same size.
        if not self.ANY_ORIENTATION and orientation_in(encoded) != UPRIGHT:
            raise UserError(
                f"{path}: its EXIF orientation is {orientation_in(encoded)}, so image "
                "and mask may not fit: turn the pixels (`mogrify -auto-orient`, or "
                "Pillow's ImageOps.exif_transpose) if masks were drawn on images as "
                "they are seen, else remove the tag (`exiftool -Orientation=`)"
            )
        return encoded


def pairs_info(
    builder: tfds.core.DatasetBuilder,
    class_names: Sequence[str] = (),
    shape: tuple[int | None, int | None] = (None, None),
    homepage: str | None = None,
) -> tfds.core.DatasetInfo:
    """Returns the description of a dataset of pairs.

    Args:
      builder: of the dataset; its docstring is the description.
      class_names: a name for each class, unless the builder finds them later.
      shape: height and width of all images, if they are the same.
      homepage: address.
    """
    image = tfds.features.Image(shape=(*shape, 3))
    mask = tfds.features.Image(
        shape=(*shape, 1), encoding_format="png", use_colormap=True
    )
    return builder.dataset_info_from_configs(
        description=builder.__doc__,
        features=tfds.features.FeaturesDict({IMAGE: image, MASK: mask}),
        supervised_keys=(IMAGE, MASK),
        metadata=tfds.core.MetadataDict({CLASS_NAMES: list(class_names)}),
        homepage=homepage,
    )
