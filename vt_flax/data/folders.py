"""Images in class folders, or in one folder with a list of their classes."""

import hashlib
import itertools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from vt_flax.data.file_table import FileTable
from vt_flax.data.folder_layout import NO_CLASS_NAME, SPLIT_NAME, FolderLayout
from vt_flax.data.image_files import (
    IMAGE_SUFFIXES,
    is_image,
    list_folder,
    walk,
)
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
        with storage_errors(path):
            if not is_folder(path):
                raise UserError(f"folder:{path}: there is no such folder")
            layout = FolderLayout(path, split)
            self._files = FileTable()
            self.class_names, ranges, notes = self._add_roots(layout)
        parts = []
        for name, slice_text in layout.parts:
            files = np.concatenate([ranges[root] for root in layout.roots[name]])
            try:
                begin, end = slice_bounds(slice_text, len(files))
            except ValueError as error:
                raise UserError(
                    f"split {split!r} of folder:{path}: {slice_text} is no slice of "
                    f"{len(files):,} images; write one such as [:80%] or [100:200]"
                ) from error
            order = np.random.Generator(np.random.Philox(key=0)).permutation(len(files))
            parts.append(files[order[begin:end]])
        self._order = np.concatenate(parts)
        if not len(self._order):
            raise UserError(f"split {split!r} of folder:{path} is empty")
        self._labels = self._files.classes()[self._order]
        self._path = path
        # Their order is shuffled, so that the first are as good a sample as any.
        sample = [epath.Path(self.describe(i)) for i in range(min(len(self), SAMPLE))]
        levels = notes_on_levels(self.name, sample)
        self.notes = (*layout.notes, *notes, *levels)

    def _add_roots(
        self, layout: FolderLayout
    ) -> tuple[tuple[str, ...], dict[epath.Path, np.ndarray], list[str]]:
        """Returns the class names, the files of each root, and notes on others."""
        classes, ranges, notes = {}, {}, []
        for root in dict.fromkeys(itertools.chain(*layout.roots.values())):
            begin = len(self._files)
            classes[root], more = _add_root(self._files, root)
            ranges[root] = np.arange(begin, len(self._files), dtype=np.int32)
            notes += more
        first, *others = classes
        for other in others:
            if classes[other] != classes[first]:
                names = sorted({*classes[first]} ^ {*classes[other]})
                raise UserError(
                    f"{first} and {other} have different classes "
                    f"({first_names(names)}): give both the same"
                )
        return classes[first], ranges, notes

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self._order)

    def identity(self) -> dict[str, Any]:
        """Returns what distinguishes the split: see `Source.identity`.

        Images count by their paths in the dataset's folder, in order.
        """
        base = len(os.fsencode(os.path.join(self._path, "")))
        folders = [folder[base:] for folder in self._files.folders]
        digest, separator = hashlib.sha256(), b""
        for block in self._files.blocks(self._order):
            paths = [folders[i] + name for i, name in zip(*block, strict=True)]
            digest.update(separator + b"\n".join(paths))
            separator = b"\n"
        return super().identity() | {"names": digest.hexdigest()[:16]}

    def class_counts(self) -> np.ndarray:
        """Returns the number of images of each class, (classes,)."""
        return np.bincount(self._labels, minlength=len(self.class_names))

    def members(self) -> np.ndarray:
        """Returns a number for each image: see `Source.members`.

        An image in a folder that is a link to another, as `val` to `train`, has the
        same number in both. A link to a single file counts as another file.
        """
        folders = [os.path.realpath(folder) for folder in self._files.folders]
        numbers = (
            map(hash, zip(map(folders.__getitem__, indices), names, strict=True))
            for indices, names in self._files.blocks(self._order)
        )
        return np.fromiter(itertools.chain.from_iterable(numbers), np.int64, len(self))

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
        return self._files.path(self._order[index])


def _add_root(files: FileTable, root: epath.Path) -> tuple[tuple[str, ...], list[str]]:
    """Adds the images of a split's folder, or of a folder without splits, to a table.

    Args:
      files: the table.
      root: holds class folders or, if there is a list of their classes, images.

    Returns:
      The class names, and notes on files that are left out.
    """
    classes, names = list_folder(root)
    loose = list(filter(is_image, names))
    if loose and not classes:
        classes, labels, notes = read_labels(root, loose)
        files.add(root, list(labels), labels.values())
        return classes, notes
    if classes and all(
        SPLIT_NAME.fullmatch(name) or NO_CLASS_NAME.fullmatch(name) for name in classes
    ):
        raise UserError(
            f"{root}: {first_names(classes)} are no names of classes: expected "
            f"{root}/CLASS/IMAGE, or {root}/SPLIT/CLASS/IMAGE under the name "
            f"folder:{root}"
        )
    start, others = len(files), []
    for label, name in enumerate(classes):
        for folder, names in walk(root / name):
            images = list(filter(is_image, names))
            files.add(folder, images, [label] * len(images))
            if len(images) < len(names):
                others += [file for file in names if not is_image(file)]
    if len(files) == start:
        beside = f", but {len(loose):,} beside them" if loose else ""
        raise UserError(
            f"no images in class folders of {root}{beside}: expected "
            f"{root}/CLASS/IMAGE, with files {', '.join(IMAGE_SUFFIXES)}"
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
    return tuple(classes), notes
