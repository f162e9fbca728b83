"""Images in class folders."""

import functools
import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from vt_flax.data import imagenet
from vt_flax.data.image_files import IMAGE_SUFFIXES, is_image, list_folder, walk
from vt_flax.data.orientation import orientation_in
from vt_flax.data.source import Example, Source
from vt_flax.data.splits import ALL, slice_bounds, split_parts
from vt_flax.data.storage import is_folder, read_file, storage_errors
from vt_flax.errors import UserError, first_names, nearest

# Names of folders that are splits rather than classes, such as `Train` and `val2017`.
SPLIT_NAME = re.compile(
    r"(train(ing)?|val(id(ation)?)?|dev|test(ing)?|eval(uation)?|holdout)"
    r"([ _-]?(set|split|data|images|imgs))?[ _-]?\d*",
    re.IGNORECASE,
)


class FolderSource(Source):
    """Images in class folders: `PATH/SPLIT/CLASS/**` or `PATH/CLASS/**`.

    All images below a class folder belong to the class. ImageNet's validation images
    need no class folders. The path may be in a bucket, as in `gs://BUCKET/PATH`.

    Splits are written as for TFDS: `train`, `train[:80%]`, `train+val`; where PATH has
    class folders, `all` is the only one. Each is in a fixed shuffled order before it is
    sliced, so that `all[:80%]` and `all[80%:]` have the same mixture of classes.
    """

    def __init__(self, path: epath.Path, split: str):
        self.name = f"folder:{path} {split}"
        self._folder = os.path.join(path, "")
        with storage_errors(path):
            if not is_folder(path):
                raise UserError(f"folder:{path}: there is no such folder")
            folders, files = list_folder(path)
            # A folder may have a name that would be parsed, such as `a+b`.
            parts = [(split, "")] if split in folders else split_parts(split)
            roots = {name: _root(path, name, folders) for name, _ in parts}
            listings = {
                name: _list_root(root, self._folder) for name, root in roots.items()
            }
        first = parts[0][0]
        self.class_names = listings[first].classes
        for name, listing in listings.items():
            names = {*self.class_names} ^ {*listing.classes}
            if names:
                raise UserError(
                    f"{roots[first]} and {roots[name]} have different classes "
                    f"({first_names(sorted(names))}): give both the same"
                )
        # Paths of the examples in the dataset's folder, and their classes.
        self._paths: list[str] = []
        labels: list[np.ndarray] = []
        for name, slice_text in parts:
            paths = listings[name].paths
            try:
                begin, end = slice_bounds(slice_text, len(paths))
            except ValueError as error:
                raise UserError(
                    f"split {split!r} of folder:{path}: {slice_text} is no slice of "
                    f"{len(paths):,} images; write one such as [:80%] or [100:200]"
                ) from error
            generator = np.random.Generator(np.random.Philox(key=0))
            order = generator.permutation(len(paths))[begin:end]
            self._paths += [paths[i] for i in order.tolist()]
            labels.append(listings[name].labels[order])
        self._labels = np.concatenate(labels)
        if not self._paths:
            raise UserError(f"split {split!r} of folder:{path} is empty")
        notes = [note for listing in listings.values() for note in listing.notes]
        loose = sum(map(is_image, files))
        if loose and path not in roots.values():
            notes.append(f"{path}: images left out beside the split folders: {loose:,}")
        self.notes = tuple(notes)

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self._paths)

    def identity(self) -> dict[str, Any]:
        """Returns what distinguishes the split: see `Source.identity`."""
        # The images' paths, in order.
        digest = hashlib.sha256(b"\n".join(map(os.fsencode, self._paths)))
        return super().identity() | {"names": digest.hexdigest()[:16]}

    def class_counts(self) -> np.ndarray:
        """Returns the number of images of each class, (classes,)."""
        return np.bincount(self._labels, minlength=len(self.class_names))

    def members(self) -> np.ndarray:
        """Returns a number for each image: see `Source.members`.

        An image in a folder that is a link to another, as `val` to `train`, has the
        same number in both. A link to a single file counts as another file.
        """
        real = functools.cache(os.path.realpath)
        parts = (path.rpartition("/") for path in self._paths)
        numbers = (hash((real(self._folder + head), name)) for head, _, name in parts)
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
        return self._folder + self._paths[index]


class _Listing(NamedTuple):
    """Images of a split, or of a folder without splits.

    Attributes:
      classes: the class names.
      paths: of the images, in the dataset's folder.
      labels: the class index of each image, (images,) int32.
      notes: on files that are left out.
    """

    classes: tuple[str, ...]
    paths: list[str]
    labels: np.ndarray
    notes: list[str]


def _root(path: epath.Path, name: str, folders: Sequence[str]) -> epath.Path:
    """Returns the folder that a split without a slice is read from."""
    if name in folders:
        return path / name
    if name != ALL:
        raise UserError(
            f"folder:{path} has no split {name!r}: expected {path / name}/CLASS/IMAGE; "
            f"without split folders, write {ALL!r} or 'all[:80%]'"
            f"{nearest(name, filter(SPLIT_NAME.fullmatch, folders))}"
        )
    return path


def _list_root(root: epath.Path, base: str) -> _Listing:
    """Lists the images in class folders, or those of ImageNet's validation archive.

    Paths are those in the folder `base`.
    """
    classes, names = list_folder(root)
    loose = list(filter(is_image, names))
    if loose and not classes and (labeled := imagenet.labels_of(loose)):
        note = f"{root}: the classes are those that ImageNet has published"
        paths = _paths_in(root, loose, base)
        return _Listing(tuple(labeled[0]), paths, np.asarray(labeled[1]), [note])
    splits = list(filter(SPLIT_NAME.fullmatch, classes))
    # A class may have the name of a split, but then it holds images.
    if splits and (
        len(splits) == len(classes) or any(list_folder(root / s)[0] for s in splits)
    ):
        raise UserError(
            f"{root}: {first_names(splits)} look like splits, not classes: expected "
            f"{root}/CLASS/IMAGE, or {root}/SPLIT/CLASS/IMAGE under the name "
            f"folder:{root} and a split such as {'+'.join(splits[:2])}"
        )
    paths, counts, others = [], [], []
    for name in classes:
        first = len(paths)
        for folder, names in walk(root / name):
            images = list(filter(is_image, names))
            paths += _paths_in(folder, images, base)
            if len(images) < len(names):
                others += [name for name in names if not is_image(name)]
        counts.append(len(paths) - first)
    if not paths:
        raise UserError(
            f"no images in class folders of {root}, and {len(loose):,} beside them: "
            f"expected {root}/CLASS/IMAGE, with files {', '.join(IMAGE_SUFFIXES)}"
        )
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), counts)
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
    return _Listing(tuple(classes), paths, labels, notes)


def _paths_in(folder: epath.Path, names: Iterable[str], base: str) -> list[str]:
    prefix = os.path.join(folder, "").removeprefix(base)
    return [prefix + name for name in names]
