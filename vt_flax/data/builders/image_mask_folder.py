"""Anyone's own images and masks, in two folders, as a TFDS dataset."""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from vt_flax.data.builders import pair_files, pairs
from vt_flax.data.folders import subfolders
from vt_flax.data.mask_labels import (
    CLASS_NAMES,
    MOST_CLASSES,
    identity_table,
    numbered_names,
)
from vt_flax.errors import UserError

# Entries of the metadata: the folder that the dataset was made of, and its files.
MADE_OF, MADE_OF_FILES = "made_of", "made_of_files"
# The classes' names, one a line.
CLASSES = "classes.txt"


class ImageMaskFolder(pairs.PairsBuilder):
    """Images and their masks, as a folder has them.

    Images and masks whose EXIF orientation is not upright are refused. Without a list
    of names, there are as many classes as the highest label says. TFDS has no split of
    the name `all`, so that images without split folders are the split `train`: slices
    such as `train[:90%]` and `train[90%:]` part them.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    images/SPLIT/NAME.jpg (or .png and others) and masks/SPLIT/NAME.png for each, in
    subfolders if you like; without split folders, images/NAME.jpg and masks/NAME.png,
    the only split is train; and, if you have names for the classes, classes.txt, one
    name a line from class 0. Masks are 8-bit grey PNGs of class indices, and 255 where
    there is no label
    """
    PALETTES = False
    ANY_ORIENTATION = False

    def _list(self, manual: epath.Path) -> pairs.Listing:
        images, masks = (
            pair_files.subfolder(manual, name, self.MANUAL_DOWNLOAD_INSTRUCTIONS)
            for name in ("images", "masks")
        )
        folders = subfolders(images)
        if folders and pair_files.images_in(images):
            raise UserError(
                f"{images} has both images and folders: put each image into the folder "
                "of a split, or all of them beside each other"
            )
        names = {folder.name for folder in folders}
        strange = {folder.name for folder in subfolders(masks)} - names
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
        return pairs.Listing(splits, _class_names(manual / CLASSES))

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        generators = super()._split_generators(dl_manager)
        self.info.metadata[MADE_OF] = made_of(dl_manager.manual_dir)
        self.info.metadata[MADE_OF_FILES] = digest_of_files(dl_manager.manual_dir)
        self._named = bool(self.info.metadata[CLASS_NAMES])
        return generators

    def _table(self) -> np.ndarray:
        return super()._table() if self._named else identity_table(MOST_CLASSES)

    def _generate_examples(
        self, files: Sequence[pair_files.PairFiles]
    ) -> Iterator[tuple[str, dict]]:
        yield from super()._generate_examples(files)
        if self._named:
            return
        if self._highest < 1:
            raise UserError(
                f"{files[0].mask.parent}: the masks have no label but 0"
                " and 255, and 255 means no label: if it is a class, store it as 1"
            )
        names = numbered_names(range(self._highest + 1))
        self.info.metadata[CLASS_NAMES] = list(names)


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
            f"{path} names {len(names)} classes; 2 to {MOST_CLASSES} are possible"
        )
    return names
