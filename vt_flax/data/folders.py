"""Images in class folders."""

import dataclasses
import functools
import hashlib
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from vt_flax.data.image_files import (
    IMAGE_SUFFIXES,
    Entries,
    files_below,
    is_image,
    list_folder,
)
from vt_flax.data.orientation import orientation_in
from vt_flax.data.pillow_decoder import notes_on_levels
from vt_flax.data.source import Example, RandomAccessSource
from vt_flax.data.splits import ALL, slice_ends, split_parts
from vt_flax.data.storage import is_folder, storage_errors
from vt_flax.errors import UserError, first_names, nearest

# Names of folders that are splits rather than classes, such as `Train` and `val2017`.
SPLIT_NAME = re.compile(
    r"(train(ing)?|val(id(ation)?)?|dev|test(ing)?|eval(uation)?|holdout)"
    r"([ _-]?(set|split|data|images|imgs))?[ _-]?\d*",
    re.IGNORECASE,
)
# Names of folders beside which there are no classes either.
NO_CLASS_NAME = re.compile(
    r"images?|imgs?|data(set)?|labels?|masks?|annotations?", re.IGNORECASE
)


class FolderSource(RandomAccessSource):
    """Images in class folders: `PATH/SPLIT/CLASS/**` or `PATH/CLASS/**`.

    All images below a class folder belong to the class. The path may be in a bucket,
    as in `gs://BUCKET/PATH`.

    Splits are written as for TFDS: `train`, `train[:80%]`, `train+val`. `all` is all
    splits together, and the only one where there are no split folders. Each is in a
    fixed shuffled order before it is sliced, so that `all[:80%]` and `all[80%:]` have
    the same mixture of classes.
    """

    def __init__(self, path: epath.Path, split: str):
        with storage_errors(path):
            self._open(path, split)

    def _open(self, path: epath.Path, split: str) -> None:
        if not is_folder(path):
            raise UserError(f"folder:{path}: there is no such folder")
        self.name = f"folder:{path} {split}"
        layout = _Layout(path, split)
        roots = {root: _ClassFolders(root) for root in layout.all_roots()}
        first, *others = roots.values()
        for other in others:
            if other.classes != first.classes:
                names = sorted({*first.classes} ^ {*other.classes})
                raise UserError(
                    f"{first.root} and {other.root} have different classes "
                    f"({first_names(names)}): give both the same"
                )
        if first.empty and not layout.has_splits:
            raise UserError(
                f"no images in {first.root / first.empty[0]}, which would be a class: "
                f"expected files {', '.join(IMAGE_SUFFIXES)}; remove the folder, or "
                "convert its files"
            )
        self.notes = (
            *layout.notes,
            *(note for r in roots.values() for note in r.notes),
        )
        self.class_names = first.classes
        self._path = path
        self._files: list[tuple[epath.Path, int]] = []
        for name, slice_text in layout.parts:
            files = [file for root in layout.roots[name] for file in roots[root].files]
            try:
                begin, end = slice_ends(slice_text, len(files))
            except ValueError as error:
                raise UserError(
                    f"split {split!r} of folder:{path}: {slice_text} is no slice of "
                    f"{len(files):,} images; write one such as [:80%] or [100:200]"
                ) from error
            order = np.random.Generator(np.random.Philox(key=0)).permutation(len(files))
            self._files += [files[i] for i in order[begin:end]]
        if not self._files:
            raise UserError(f"split {split!r} of folder:{path} is empty")
        files = [file for file, _ in self._files]
        self.notes += tuple(notes_on_levels(self.name, files))

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self._files)

    def identity(self) -> dict[str, Any]:
        """Returns what makes the split the one it is: see `Source.identity`."""
        text = "\n".join(self._names()).encode("utf-8", "surrogateescape")
        return super().identity() | {"names": hashlib.sha256(text).hexdigest()[:16]}

    def class_counts(self) -> np.ndarray:
        """Returns the number of images of each class, (classes,)."""
        labels = [label for _, label in self._files]
        return np.bincount(labels, minlength=len(self.class_names))

    def members(self) -> np.ndarray:
        """Returns a number for each image: see `Source.members`.

        An image in a folder that is a link to another, as `val` to `train`, has the
        same number in both. A link to a single file counts as another file.
        """

        @functools.cache
        def real_path(folder: tuple[str, ...]) -> str:
            return os.path.realpath(os.path.join(*folder))

        paths = (file.parts for file, _ in self._files)
        numbers = (hash((real_path(parts[:-1]), parts[-1])) for parts in paths)
        return np.fromiter(numbers, np.int64, len(self))

    def _names(self) -> list[str]:
        """Returns the images' paths in the dataset's folder, in order."""
        above = len(self._path.parts)
        return ["/".join(file.parts[above:]) for file, _ in self._files]

    def read(self, indices: Sequence[int]) -> list[Example]:
        """Returns the examples at some indices, still encoded."""
        examples = []
        for i in indices:
            file, label = self._files[i]
            with storage_errors(file):
                encoded = file.read_bytes()
            examples.append(Example(encoded, label, orientation_in(encoded)))
        return examples

    def describe(self, index: int) -> str:
        """Names an image by its file."""
        return str(self._files[index][0])


class _Layout:
    """The folders that a split is read from.

    Attributes:
      parts: name and slice of each summand of the split.
      roots: the folders that hold the class folders of each of these names.
      has_splits: whether they are split folders.
      notes: how the folder was read, where that is not certain.
    """

    def __init__(self, path: epath.Path, split: str):
        self._path = path
        entries = list_folder(path)
        self._folders = entries.folders
        self._entries: dict[str, Entries] = {}
        self.notes: tuple[str, ...] = ()
        # A folder may have a name that would be parsed, such as `a+b`.
        self.parts = [(split, "")] if split in self._folders else split_parts(split)
        names = {name for name, _ in self.parts}
        if ALL in names and not (ALL in self._folders and self._is_split(ALL)):
            names.remove(ALL)
        for name in sorted(names):
            if name not in self._folders or not self._is_split(name):
                raise self._no_split(name, split)
        self.has_splits = bool(names)
        self.roots = {name: [path / name] for name in names}
        if len(self.roots) < len({name for name, _ in self.parts}):
            self.roots[ALL] = self._roots_of_all()
        loose = sum(map(is_image, entries.files))
        if self.has_splits and loose:
            self.notes = (
                f"{path}: images left out beside the split folders: {loose:,}",
            )

    def all_roots(self) -> list[epath.Path]:
        """Returns the folders of all names, each once."""
        return [*dict.fromkeys(root for roots in self.roots.values() for root in roots)]

    def _inside(self, name: str) -> Entries:
        if name not in self._entries:
            self._entries[name] = list_folder(self._path / name)
        return self._entries[name]

    def _holds_images(self, name: str) -> bool:
        return any(map(is_image, self._inside(name).files))

    def _is_split(self, name: str) -> bool:
        """Returns whether a folder may be a split: it holds folders, and no images.

        A few images beside the class folders are no matter if its name says the same.
        """
        named = bool(SPLIT_NAME.fullmatch(name))
        return bool(self._inside(name).folders) and (
            named or not self._holds_images(name)
        )

    def _no_split(self, name: str, split: str) -> UserError:
        path = self._path
        splits = [folder for folder in self._folders if self._is_split(folder)]
        if name in self._folders and (splits or SPLIT_NAME.fullmatch(name)):
            return UserError(
                f"split {name!r}: {path / name} has no class folders: expected "
                f"{path / name}/CLASS/IMAGE"
            )
        named = any(map(SPLIT_NAME.fullmatch, splits))
        if len(self._folders) == 1 and splits and not named:
            inner = self._path_with(name)
            if inner is None:
                return self._only_class(splits[0])
            return UserError(
                f"folder:{path} has no split {name!r}, but folder:{inner} has"
            )
        if splits:
            classes = "" if named else f"; {ALL!r} reads all folders as classes"
            hint = classes + nearest(name, splits)
            return UserError(f"folder:{path} has no split {name!r}{hint}")
        return UserError(
            f"folder:{path} has no split folders, so its only split is 'all': "
            f"write 'all', or a slice such as 'all[:80%]', instead of {split!r}"
        )

    def _path_with(self, name: str) -> epath.Path | None:
        """Returns the folder with a split below folders that hold one folder each."""
        path, folders = self._path, self._folders
        while len(folders) == 1:
            path = path / folders[0]
            folders = list_folder(path).folders
            if name in folders:
                return path
        return None

    def _only_class(self, folder: str) -> UserError:
        path = self._path
        return UserError(
            f"folder:{path} holds one folder, {folder}, which would be the only class: "
            f"write folder:{path / folder} if the classes are in it"
        )

    def _roots_of_all(self) -> list[epath.Path]:
        path = self._path
        splits = [folder for folder in self._folders if self._is_split(folder)]
        named = [folder for folder in splits if SPLIT_NAME.fullmatch(folder)]
        rest = [f for f in self._folders if f not in splits and self._holds_images(f)]
        if named and rest:
            raise UserError(
                f"folder:{path}: folders that look like splits ({first_names(named)}) "
                f"are beside folders of images ({first_names(rest)}): name a split, "
                f"such as {named[0]!r}, or move one kind away"
            )
        if self.has_splits or named:
            self.has_splits = True
            return [path / folder for folder in splits]
        if len(splits) == len(self._folders) == 1:
            raise self._only_class(splits[0])
        # Where other folders hold images directly, there is no doubt.
        if splits and not rest:
            self.notes = (
                f"folder:{path}: {first_names(splits)} are read as classes, with the "
                "images of the folders in them; if they are splits, name one, such as "
                f"{splits[0]!r}",
            )
        return [path]


@dataclasses.dataclass
class _ClassFolders:
    """The class folders in a folder, and their images.

    Attributes:
      root: the folder.
      classes: names of the class folders.
      files: their images, with the index of their class.
      empty: those that have none.
      notes: which files were left out.
    """

    root: epath.Path

    def __post_init__(self) -> None:
        entries = list_folder(self.root)
        self.classes = tuple(entries.folders)
        if self.classes and all(
            SPLIT_NAME.fullmatch(name) or NO_CLASS_NAME.fullmatch(name)
            for name in self.classes
        ):
            raise UserError(
                f"{self.root}: {first_names(self.classes)} are no names of classes: "
                f"expected {self.root}/CLASS/IMAGE, or {self.root}/SPLIT/CLASS/IMAGE "
                f"under the name folder:{self.root}"
            )
        self.files: list[tuple[epath.Path, int]] = []
        self.empty: list[str] = []
        others: list[str] = []
        for label, name in enumerate(self.classes):
            before = len(self.files)
            for file in files_below(self.root / name):
                if is_image(file.name):
                    self.files.append((file, label))
                else:
                    others.append(file.suffix.lower() or "none")
            if len(self.files) == before:
                self.empty.append(name)
        loose = sum(map(is_image, entries.files))
        if not self.files and loose:
            raise UserError(
                f"{self.root} has no images in class folders, but {loose:,} beside "
                f"them: expected {self.root}/CLASS/IMAGE"
            )
        if not self.files:
            raise UserError(
                f"no images in {self.root}: expected class folders with files "
                f"{', '.join(IMAGE_SUFFIXES)}"
            )
        self.notes = []
        if loose:
            self.notes.append(
                f"{self.root}: images left out beside the class folders: {loose:,}"
            )
        if others:
            self.notes.append(
                f"{self.root}: files left out that have no suffix of an image: "
                f"{len(others):,} ({first_names(sorted(set(others)))})"
            )
