"""Anyone's own images and masks, in two folders, as a TFDS dataset."""

import hashlib
import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from vt_flax.data.image_files import list_folder
from vt_flax.data.mask_counts import MaskCounts
from vt_flax.data.masks import (
    CLASS_NAMES,
    MASK_PIXELS,
    MOST_CLASSES,
    histogram,
    is_grey_png,
)
from vt_flax.data.prepare import mask_values, pair_files, pairs
from vt_flax.data.prepare.workspace import say
from vt_flax.data.threads import ordered_map
from vt_flax.errors import UserError, first_names

# Entries of the metadata: the folder that the dataset was made of, its files, and what
# 255 means in its masks.
MADE_OF, MADE_OF_FILES = "made_of", "made_of_files"
IGNORE_LABEL = "ignore_label"
# The classes' names, one a line.
CLASSES = "classes.txt"


class ImageMaskFolder(pairs.PairsBuilder):
    """Images and their masks, as a folder has them.

    Images and masks whose EXIF orientation is not upright are refused. Without a list
    of names, there are as many classes as the highest label says. TFDS has no split of
    the name `all`, so that images without split folders are the split `train`: slices
    such as `train[:90%]` and `train[90%:]` part them.

    Attributes:
      ignore_label: whether 255 means no label (`255`) or is a class (`none`); empty: no
        label, and an error where the masks leave that in doubt.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    images/SPLIT/NAME.jpg (or .png and others) and masks/SPLIT/NAME.png for each, in
    subfolders if you like; without split folders, images/NAME.jpg and masks/NAME.png,
    the only split is train; and, if you have names for the classes, classes.txt, one
    name a line from class 0. Masks are gray PNGs of class indices, and 255 where there
    is no label
    """
    PALETTES = False
    ANY_ORIENTATION = False

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.ignore_label = ""

    def _list(self, manual: epath.Path) -> pairs.Listing:
        images, masks = (
            pair_files.subfolder(manual, name, self.MANUAL_DOWNLOAD_INSTRUCTIONS)
            for name in ("images", "masks")
        )
        folders = [images / name for name in list_folder(images).folders]
        if folders and pair_files.images_in(images):
            raise UserError(
                f"{images} has both images and folders: put each image into the folder "
                "of a split, or all of them beside each other"
            )
        names = {folder.name for folder in folders}
        strange = {*list_folder(masks).folders} - names
        if names and strange:
            raise UserError(
                f"{masks / min(strange)} has no images: {images / min(strange)} is not "
                "there"
            )
        if folders:
            splits = {
                _split_name(folder): _pairs(folder, masks / folder.name)
                for folder in folders
            }
        else:
            splits = {"train": _pairs(images, masks)}
        names = _class_names(manual / CLASSES)
        others = [f.name for f in manual.iterdir() if f.suffix.lower() == ".txt"]
        if others and not names:
            say(
                f"note: {manual} has no {CLASSES}, so the classes have numbers for "
                f"names; not read: {first_names(sorted(others))}"
            )
        return pairs.Listing(splits, names)

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        manual = dl_manager.manual_dir
        generators = super()._split_generators(dl_manager)
        listing = self.listing(manual)
        counts, first = self._count_values(listing)
        names, self._classes_by_value = mask_values.assign_classes(
            manual / "masks",
            sum(counts.values(), MaskCounts()),
            first,
            listing.class_names,
            self.ignore_label,
        )
        named = bool(listing.class_names)
        for note in mask_values.notes(counts, names, self._classes_by_value, named):
            say(f"note: {note}")
        metadata = self.info.metadata
        metadata[CLASS_NAMES] = names
        metadata[MASK_PIXELS] = {
            split: {
                str(self._classes_by_value[value]): int(found.pixels[value])
                for value in found.values()
            }
            for split, found in counts.items()
        }
        metadata[IGNORE_LABEL] = self.ignore_label or mask_values.NO_LABEL
        metadata[MADE_OF] = made_of(manual)
        metadata[MADE_OF_FILES] = digest_of_files(manual)
        return generators

    def _count_values(
        self, listing: pairs.Listing
    ) -> tuple[dict[str, MaskCounts], dict[int, pair_files.PairFiles]]:
        """Returns counts by split, and for each value the first pair that has it."""

        def read(pair: pair_files.PairFiles) -> tuple[bool, np.ndarray]:
            encoded, values = self._read_mask(pair)
            return is_grey_png(encoded), histogram(values)

        counts, first, converted = {}, {}, 0
        workers = os.cpu_count() or 1
        for split, files in listing.splits.items():
            counts[split] = MaskCounts()
            found = ordered_map(read, files, workers, 4 * workers)
            for pair, (is_plain, pixels) in zip(files, found, strict=True):
                counts[split].add(pixels)
                converted += not is_plain
                for value in np.flatnonzero(pixels).tolist():
                    first.setdefault(value, pair)
        if converted:
            say(
                f"note: {converted:,} of {sum(map(len, listing.splits.values())):,} "
                "masks are gray in another form than 8 bits (RGB with equal channels, "
                "or 1 to 16 bits): their values are read as stored"
            )
        return counts, first

    def _table(self) -> np.ndarray:
        return self._classes_by_value


def made_of(manual: epath.Path) -> str:
    """Returns how the metadata name the folder that a dataset was made of."""
    return os.fspath(manual.expanduser().resolve())


def digest_of_files(manual: epath.Path) -> str:
    """Returns a digest of a folder's images and masks, names and sizes, and classes."""
    digest = hashlib.sha256()
    for name in ("images", "masks"):
        folder = manual / name
        files = pair_files.images_in(folder, deep=True) if folder.is_dir() else {}
        for place, file in sorted(files.items()):
            line = f"{name}/{place}{file.suffix} {file.stat().length}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
    classes = manual / CLASSES
    digest.update(classes.read_bytes() if classes.exists() else b"")
    return digest.hexdigest()


def _split_name(folder: epath.Path) -> str:
    # TFDS makes file names of it, and means all splits by `all`.
    if not re.fullmatch(r"\w+", folder.name) or folder.name.lower() == "all":
        raise UserError(
            f"{folder}: a split cannot have this name: rename it, with letters, digits "
            "and _ alone, and not all"
        )
    return folder.name


def _pairs(images: epath.Path, masks: epath.Path) -> list[pair_files.PairFiles]:
    return pair_files.pair_up(
        pair_files.images_in(images, deep=True),
        pair_files.images_in(masks, deep=True) if masks.is_dir() else {},
        images,
        masks,
    )


def _class_names(path: epath.Path) -> list[str]:
    """Returns the names in classes.txt, or none if it is not there."""
    if not path.exists():
        return []
    names = [name.strip() for name in pair_files.read_lines(path)]
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if "" in names or twice:
        raise UserError(
            f"{path}: {f'{twice[0]!r} is there twice' if twice else 'an empty line'}; "
            "it needs a name for each class, one a line from class 0"
        )
    if not 2 <= len(names) <= MOST_CLASSES:
        raise UserError(
            f"{path} names {len(names)} classes; 2 to {MOST_CLASSES} are possible, the "
            "background among them"
        )
    return names
