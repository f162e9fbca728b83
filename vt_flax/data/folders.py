"""Images in class folders, or in one folder with a list of their classes."""

import array
import functools
import hashlib
import itertools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from vt_flax.data.folder_layout import NO_CLASS_NAME, SPLIT_NAME, find_roots
from vt_flax.data.image_files import IMAGE_SUFFIXES, is_image, list_folder, walk
from vt_flax.data.label_lists import read_labels
from vt_flax.data.orientation import orientation_in
from vt_flax.data.pillow_decoder import notes_on_levels
from vt_flax.data.source import Example, RandomAccessSource
from vt_flax.data.splits import slice_bounds
from vt_flax.data.storage import is_folder, read_file, storage_errors
from vt_flax.errors import UserError, first_names

# Files that are searched for images of more than 8 bits before a run starts.
SAMPLE = 1000


class FolderSource(RandomAccessSource):
    """Images in class folders: `PATH/SPLIT/CLASS/**` or `PATH/CLASS/**`.

    All images below a class folder belong to the class. Instead of class folders, a
    list of classes may lie beside a folder of images (see `label_lists`). The path may
    be in a bucket, as in `gs://BUCKET/PATH`.

    Splits are written as for TFDS: `train`, `train[:80%]`, `train+val`. `all` is all
    splits together, and the only one where there are no split folders. Each is in a
    fixed shuffled order before it is sliced, so that `all[:80%]` and `all[80%:]` have
    the same mixture of classes.
    """

    def __init__(self, path: epath.Path, split: str):
        self.name = f"folder:{path} {split}"
        self._path = os.path.join(path, "")
        # Path of each folder, with a slash at its end; and, for each image, the index
        # of its folder, its name and its class.
        self._folders: list[str] = []
        self._folder_of = array.array("i")
        self._names: list[str] = []
        labels = array.array("i")
        classes, indices = {}, {}
        with storage_errors(path):
            if not is_folder(path):
                raise UserError(f"folder:{path}: there is no such folder")
            parts, notes = find_roots(path, split)
            for root in dict.fromkeys(itertools.chain(*(roots for roots, _ in parts))):
                first = len(self._names)
                classes[root], listed, more = _list_root(root)
                for folder, names, labels_of_names in listed:
                    self._folder_of.extend([len(self._folders)] * len(names))
                    self._folders.append(os.path.join(folder, ""))
                    self._names += names
                    labels.extend(labels_of_names)
                indices[root] = np.arange(first, len(self._names), dtype=np.int32)
                notes += more
        self.class_names = _common_classes(classes)
        order = []
        for roots, slice_text in parts:
            images = np.concatenate([indices[root] for root in roots])
            try:
                begin, end = slice_bounds(slice_text, len(images))
            except ValueError as error:
                raise UserError(
                    f"split {split!r} of folder:{path}: {slice_text} is no slice of "
                    f"{len(images):,} images; write one such as [:80%] or [100:200]"
                ) from error
            generator = np.random.Generator(np.random.Philox(key=0))
            order.append(images[generator.permutation(len(images))[begin:end]])
        # The index of each example among all images.
        self._order = np.concatenate(order)
        if not len(self._order):
            raise UserError(f"split {split!r} of folder:{path} is empty")
        self._labels = np.asarray(labels)[self._order]
        # Their order is shuffled, so that the first are as good a sample as any.
        sample = [epath.Path(self.describe(i)) for i in range(min(len(self), SAMPLE))]
        self.notes = (*notes, *notes_on_levels(self.name, sample))

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self._order)

    def identity(self) -> dict[str, Any]:
        """Returns what distinguishes the split: see `Source.identity`."""
        return super().identity() | {"names": self._digest}

    @functools.cached_property
    def _digest(self) -> str:
        """A digest of the images' paths in the dataset's folder, in order."""
        folders = [folder.removeprefix(self._path) for folder in self._folders]
        digest, separator = hashlib.sha256(), ""
        for i in self._order.tolist():
            path = f"{separator}{folders[self._folder_of[i]]}{self._names[i]}"
            digest.update(os.fsencode(path))
            separator = "\n"
        return digest.hexdigest()[:16]

    def class_counts(self) -> np.ndarray:
        """Returns the number of images of each class, (classes,)."""
        return np.bincount(self._labels, minlength=len(self.class_names))

    def members(self) -> np.ndarray:
        """Returns a number for each image: see `Source.members`.

        An image in a folder that is a link to another, as `val` to `train`, has the
        same number in both. A link to a single file counts as another file.
        """
        folders = [os.path.realpath(folder) for folder in self._folders]
        numbers = (
            hash((folders[self._folder_of[i]], self._names[i]))
            for i in self._order.tolist()
        )
        return np.fromiter(numbers, np.int64, len(self))

    def read(self, indices: Sequence[int]) -> list[Example]:
        """Returns the examples at some indices, still encoded."""
        examples = []
        for index in indices:
            encoded = read_file(self.describe(index))
            label = int(self._labels[index])
            examples.append(Example(encoded, label, orientation_in(encoded)))
        return examples

    def describe(self, index: int) -> str:
        """Returns an image's path."""
        image = self._order[index]
        return self._folders[self._folder_of[image]] + self._names[image]


def _common_classes(classes: dict[epath.Path, tuple[str, ...]]) -> tuple[str, ...]:
    """Returns the class names, which must be the same in all folders of a split."""
    first, *others = classes
    for other in others:
        if classes[other] != classes[first]:
            names = sorted({*classes[first]} ^ {*classes[other]})
            raise UserError(
                f"{first} and {other} have different classes "
                f"({first_names(names)}): give both the same"
            )
    return classes[first]


def _list_root(
    root: epath.Path,
) -> tuple[tuple[str, ...], list[tuple[epath.Path, list[str], list[int]]], list[str]]:
    """Lists the images in class folders, or in a folder with a list of their classes.

    Returns:
      The class names; folders of images, each with the names of the images and the
      indices of their classes; and notes on files that are left out.
    """
    classes, names = list_folder(root)
    loose = list(filter(is_image, names))
    if loose and not classes:
        classes, labels, notes = read_labels(root, loose)
        return classes, [(root, list(labels), list(labels.values()))], notes
    if classes and all(
        SPLIT_NAME.fullmatch(name) or NO_CLASS_NAME.fullmatch(name) for name in classes
    ):
        raise UserError(
            f"{root}: {first_names(classes)} are no names of classes: expected "
            f"{root}/CLASS/IMAGE, or {root}/SPLIT/CLASS/IMAGE under the name "
            f"folder:{root}"
        )
    listed, others = [], []
    for label, name in enumerate(classes):
        for folder, names in walk(root / name):
            images = list(filter(is_image, names))
            if images:
                listed.append((folder, images, [label] * len(images)))
            if len(images) < len(names):
                others += [file for file in names if not is_image(file)]
    if not listed:
        raise UserError(
            f"no images in class folders of {root}: expected {root}/CLASS/IMAGE, with "
            f"files {', '.join(IMAGE_SUFFIXES)}"
        )
    notes = []
    if loose:
        notes.append(
            f"{root}: images left out beside the class folders: {len(loose):,}"
        )
    if others:
        suffixes = {os.path.splitext(name)[1].lower() or "none" for name in others}
        notes.append(
            f"{root}: files left out that have no suffix of an image: {len(others):,} "
            f"({first_names(sorted(suffixes))})"
        )
    return tuple(classes), listed, notes
