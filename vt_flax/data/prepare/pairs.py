"""Builder of segmentation datasets from images and masks in files of equal names."""

import abc
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from vt_flax.data.image_files import files_below, is_image
from vt_flax.data.masks import (
    IGNORE,
    NO_CLASS,
    decode_mask,
    encode_png,
    is_gray_png,
    label_table,
    values_in,
)
from vt_flax.data.orientation import UPRIGHT, orientation_in
from vt_flax.data.pillow_decoder import decode_with_pillow
from vt_flax.data.prepare.threads import in_threads
from vt_flax.data.segmentation_sources import CLASS_NAMES
from vt_flax.errors import UserError, first_names

IMAGE, MASK = "image", "segmentation_label"


class Pair(NamedTuple):
    """An image and its mask."""

    name: str  # of the example, unique in its split
    image: epath.Path
    mask: epath.Path
    segments: Any = None  # of a panoptic mask: see `coco_stuff`


class Listing(NamedTuple):
    """The pairs of a dataset and the classes of their masks."""

    splits: Mapping[str, Sequence[Pair]]
    class_names: Sequence[str]
    # Class of each stored value, or 255; empty if the values are the classes.
    label_map: Sequence[int] = ()
    # Entries of the dataset's metadata, beside the class names.
    metadata: Mapping[str, Any] = {}


class PairsBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Builder of a dataset of images and masks; subclasses list their pairs.

    Images go into the records as they are, and are used as they are stored, whatever
    their EXIF orientation: public datasets drew their masks on the stored pixels. Masks
    are stored as 8-bit gray PNGs of class indices and 255, which means no label.

    Attributes:
      STRICT: whether to reject masks that are palette PNGs, whose indices are else the
        labels, and files whose EXIF orientation is not upright.
      HINT: what to do about values that are no classes.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    HOMEPAGE: str | None = None
    STRICT = False
    HINT = ""

    @abc.abstractmethod
    def list_pairs(self, manual: epath.Path) -> Listing:
        """Returns the content of the folder of manual files."""

    def decode_mask(self, pair: Pair, encoded: bytes) -> np.ndarray:
        """Decodes a mask to its values (height, width), uint8."""
        return decode_mask(encoded, not self.STRICT, any_gray=True)

    def _info(self) -> tfds.core.DatasetInfo:
        return pairs_info(self, homepage=self.HOMEPAGE)

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
        yield from in_threads(lambda pair: self._example(pair, table), pairs)

    def _example(self, pair: Pair, table: np.ndarray) -> tuple[str, dict]:
        """Returns the name of an example, and its image and mask, both encoded."""
        image, (encoded, values) = self._read(pair.image), self.read_mask(pair)
        try:
            width, height = decode_with_pillow(image).size
        except ValueError as error:
            raise UserError(f"{pair.image}: {error}") from error
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
            encoded = encode_png(table[values])
        return pair.name, {IMAGE: image, MASK: encoded}

    def read_mask(self, pair: Pair) -> tuple[bytes, np.ndarray]:
        """Returns a mask's file and its values (height, width), uint8."""
        encoded = self._read(pair.mask)
        try:
            return encoded, self.decode_mask(pair, encoded)
        except ValueError as error:
            raise UserError(f"{pair.mask}: {error}") from error

    def _read(self, path: epath.Path) -> bytes:
        encoded = path.read_bytes()
        # Tools that draw masks disagree on whether they turn the image; both may have
        # the same size.
        if self.STRICT and orientation_in(encoded) != UPRIGHT:
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
    """Returns the description of a dataset of pairs, of any shape or all of one."""
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


def images_in(folder: epath.Path) -> dict[str, epath.Path]:
    """Returns all image files below a folder by their path in it, without suffix."""
    found: dict[str, epath.Path] = {}
    for file in files_below(folder):
        if not is_image(file.name):
            continue
        name = os.fspath(file.relative_to(folder).with_suffix(""))
        if name in found:
            raise UserError(
                f"{file} and {found[name].name} have one name: a mask could be "
                "either's; rename or remove one"
            )
        found[name] = file
    return found


def pair_up(image_folder: epath.Path, mask_folder: epath.Path) -> list[Pair]:
    """Pairs all images below a folder with the masks below another by their names."""
    images, masks = images_in(image_folder), images_in(mask_folder)
    no_mask = [n + images[n].suffix for n in sorted(images.keys() - masks.keys())]
    no_image = [n + masks[n].suffix for n in sorted(masks.keys() - images.keys())]
    if no_mask or no_image or not images:
        raise UserError(
            f"{len(images):,} images in {image_folder} and {len(masks):,} masks in "
            f"{mask_folder}, which need the same names: without a mask: "
            f"{first_names(no_mask) or 'none'}; without an image: "
            f"{first_names(no_image) or 'none'}"
        )
    return [Pair(name, images[name], masks[name]) for name in sorted(images)]


def pair_splits(
    manual: epath.Path, images: str, masks: str, folders: Mapping[str, str]
) -> dict[str, list[Pair]]:
    """Pairs the files of each split, whose folder replaces `{}` in both paths."""
    return {
        split: pair_up(manual / images.format(name), manual / masks.format(name))
        for split, name in folders.items()
    }


def read_lines(path: epath.Path) -> list[str]:
    """Returns the stripped lines of a text file, without empty ones at the end."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except ValueError as error:
        raise UserError(f"{path}: cannot be read as text ({error})") from error
    return [line.strip() for line in text.rstrip().split("\n")]
