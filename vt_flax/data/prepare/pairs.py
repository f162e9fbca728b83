"""What the builders of segmentation datasets share: pairs of an image and a mask."""

import abc
import dataclasses
import io
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image

from vt_flax.data.masks import (
    CLASS_NAMES,
    IGNORE,
    MIRRORED,
    NO_CLASS,
    decode_mask,
    encode_mask,
    identity_table,
    is_grey_png,
    values_in,
)
from vt_flax.data.orientation import UPRIGHT, orientation_in
from vt_flax.data.prepare.pair_files import PairFiles
from vt_flax.data.prepare.workspace import array_record_bytes
from vt_flax.data.threads import ordered_map
from vt_flax.errors import UserError

IMAGE, MASK = "image", "segmentation_label"
# Files of each split whose sizes tell what all take.
SAMPLE = 100
# TFDS makes no smaller ones of a large dataset.
SHARD_BYTES = 64 << 20


@dataclasses.dataclass(frozen=True)
class Listing:
    """What a folder holds.

    Attributes:
      splits: pairs by the name of their split.
      class_names: a name for each class; empty if they are not known yet.
    """

    splits: Mapping[str, Sequence[PairFiles]]
    class_names: Sequence[str]


class PairsBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Base of the builders that read image and mask files from a folder.

    Images go into the records as they are, and are used as they are stored, whatever
    their EXIF orientation: public datasets drew their masks on the stored pixels. Masks
    are stored as 8-bit gray PNGs of class indices and 255, which means no label.

    Attributes:
      PALETTES: whether the indices of palette PNGs are labels, too.
      ANY_ORIENTATION: whether files may have an EXIF orientation that is not upright.
      MIRRORED: the class that each class becomes in a mirrored image; empty if none
        changes.
    """

    PALETTES = True
    ANY_ORIENTATION = True
    MIRRORED: Sequence[int] = ()
    HOMEPAGE = ""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self._listed: dict[str, Listing] = {}

    @abc.abstractmethod
    def _list(self, manual: epath.Path) -> Listing:
        """Lists what a folder of manual files holds.

        Raises:
          UserError: if a folder, an image or a mask is missing.
        """

    def _table(self) -> np.ndarray:
        """Returns what stored values become (256,): class, 255 or `NO_CLASS`."""
        return identity_table(len(self.info.metadata[CLASS_NAMES]))

    def _values(self, pair: PairFiles, encoded: bytes) -> np.ndarray:
        """Returns the values (height, width), uint8, of an encoded mask.

        Raises:
          ValueError: if it cannot be read; says why.
        """
        return decode_mask(encoded, self.PALETTES, any_gray=True)

    def listing(self, manual: epath.Path) -> Listing:
        """Returns what a folder of manual files holds.

        Raises:
          UserError: if a folder, an image or a mask is missing.
        """
        key = os.fspath(manual)
        if key not in self._listed:
            self._listed[key] = self._list(manual)
        return self._listed[key]

    def expected_bytes(self, manual: epath.Path) -> int:
        """Returns about what the result takes, judged by some files of each split."""
        content, count = 0.0, 0
        for pairs in self.listing(manual).splits.values():
            sample = pairs[:: max(1, len(pairs) // SAMPLE)]
            read = sum(p.image.stat().length + p.mask.stat().length for p in sample)
            # A tenth more, for masks that are encoded anew and the sample's error.
            content += 1.1 * read / len(sample) * len(pairs)
            count += len(pairs)
        return array_record_bytes(content, count, math.ceil(content / SHARD_BYTES) + 2)

    def _info(self) -> tfds.core.DatasetInfo:
        return pairs_info(self, homepage=self.HOMEPAGE)

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        listing = self.listing(dl_manager.manual_dir)
        self.info.metadata[CLASS_NAMES] = list(listing.class_names)
        if self.MIRRORED:
            self.info.metadata[MIRRORED] = list(self.MIRRORED)
        return {
            split: self._generate_examples(pairs)
            for split, pairs in listing.splits.items()
        }

    def _generate_examples(
        self, pairs: Sequence[PairFiles]
    ) -> Iterator[tuple[str, dict]]:
        table = self._table()
        workers = os.cpu_count() or 1
        examples = ordered_map(
            lambda pair: self._example(pair, table), pairs, workers, 4 * workers
        )
        for pair, (image, mask) in zip(pairs, examples, strict=True):
            yield pair.name, {IMAGE: image, MASK: mask}

    def _read_mask(self, pair: PairFiles) -> tuple[bytes, np.ndarray]:
        """Returns a mask's file and its values (height, width), uint8."""
        encoded = _read(pair.mask)
        if not self.ANY_ORIENTATION:
            _check_upright(pair.mask, encoded)
        try:
            return encoded, self._values(pair, encoded)
        except ValueError as error:
            raise UserError(f"{pair.mask}: {error}") from error

    def _example(self, pair: PairFiles, table: np.ndarray) -> tuple[bytes, bytes]:
        """Returns an image and its mask, both encoded."""
        image, (encoded, values) = _read(pair.image), self._read_mask(pair)
        if not self.ANY_ORIENTATION:
            _check_upright(pair.image, image)
        _check_image(pair, image, values.shape)
        found = values_in(values)
        labels = table[found]
        if (labels == NO_CLASS).any():
            classes = len(np.unique(table[table < NO_CLASS]))
            raise UserError(
                f"{pair.mask}: value {found[labels == NO_CLASS][0]} is none of the "
                f"{classes} classes, nor {IGNORE} for no label"
            )
        if not is_grey_png(encoded) or (labels != found).any():
            encoded = encode_mask(table[values])
        return image, encoded


def pairs_info(
    builder: tfds.core.DatasetBuilder,
    class_names: Sequence[str] = (),
    shape: tuple[int | None, int | None] = (None, None),
    homepage: str = "",
) -> tfds.core.DatasetInfo:
    """Returns the description of a dataset of pairs.

    Args:
      builder: of the dataset; its docstring is the description.
      class_names: a name for each class, unless the builder finds them later.
      shape: height and width of all images, if they are the same.
      homepage: address.
    """
    return builder.dataset_info_from_configs(
        description=builder.__doc__,
        features=tfds.features.FeaturesDict(
            {
                IMAGE: tfds.features.Image(shape=(*shape, 3)),
                MASK: tfds.features.Image(
                    shape=(*shape, 1), encoding_format="png", use_colormap=True
                ),
            }
        ),
        supervised_keys=(IMAGE, MASK),
        metadata=tfds.core.MetadataDict({CLASS_NAMES: list(class_names)}),
        homepage=homepage or None,
    )


def _read(path: epath.Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error


def _check_upright(path: epath.Path, encoded: bytes) -> None:
    """Checks that an image or a mask is stored as it is seen.

    Tools that draw masks disagree on which of the two they show; a mask that belongs to
    the other one may have the same size.

    Raises:
      UserError: if it is not.
    """
    orientation = orientation_in(encoded)
    if orientation != UPRIGHT:
        raise UserError(
            f"{path}: its EXIF orientation is {orientation}, so image and mask may "
            "not fit each other: bake it into the pixels (`mogrify -auto-orient`, or "
            "ImageOps.exif_transpose of Pillow) if masks were drawn on images as "
            "they are seen, or else remove the tag (`exiftool -Orientation=`)"
        )


def _check_image(pair: PairFiles, encoded: bytes, shape: tuple[int, ...]) -> None:
    """Checks that an image can be read and has its mask's (height, width).

    Raises:
      UserError: if not.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            width, height = image.size
            # All of the file is read, but most of its pixels are not computed.
            image.draft("L", (1, 1))
            image.load()
    except Exception as error:
        # Pillow's plugins raise OSError, SyntaxError, struct.error and more.
        reason = str(error).replace(" <_io.BytesIO object", "").split(" at 0x")[0]
        raise UserError(f"{pair.image}: not a readable image ({reason})") from error
    if (height, width) == shape:
        return
    raise UserError(
        f"{pair.mask} has {shape[1]} x {shape[0]} pixels, its image {pair.image} "
        f"{width} x {height}"
    )
