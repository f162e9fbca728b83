"""Images in class folders."""

import hashlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from vt_flax.data.source import Example, RandomAccessSource
from vt_flax.data.storage import is_folder, storage_errors
from vt_flax.errors import UserError, nearest

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")


class FolderSource(RandomAccessSource):
    """Images in class folders: `PATH/SPLIT/CLASS/IMAGE`, or `PATH/CLASS/IMAGE`.

    The path may be a bucket's, as in `gs://BUCKET/PATH`.

    Without split folders the only split is `all`, in a fixed shuffled order, so that
    the slices `all[:80%]` and `all[80%:]` part it into training and test images.
    """

    def __init__(self, path: epath.Path, split: str):
        with storage_errors(path):
            self._open(path, split)

    def _open(self, path: epath.Path, split: str) -> None:
        if not is_folder(path):
            raise UserError(f"folder:{path}: there is no such folder")
        name, first, last = _parse_split(split)
        folders = subfolders(path)
        by_split = {folder.name for folder in folders if subfolders(folder)}
        if by_split:
            if name not in by_split:
                raise UserError(
                    f"folder:{path} has no split {name!r}{nearest(name, by_split)}"
                )
            root = path / name
        elif name == "all":
            root = path
        else:
            raise UserError(
                f"folder:{path} has no split folders, so its only split is 'all': "
                f"write 'all', or a slice such as 'all[:80%]', instead of {split!r}"
            )
        classes = subfolders(root)
        files, empty, ignored = [], [], []
        for label, folder in enumerate(classes):
            images, others = _images(folder)
            files += [(file, label) for file in images]
            empty += [] if images else [folder]
            ignored += others
        if not files:
            raise UserError(
                f"no images in {root}: expected class folders with files "
                f"{', '.join(IMAGE_SUFFIXES)}"
            )
        if empty and not by_split:
            raise UserError(
                f"no images in {empty[0]}, which would be a class: expected files "
                f"{', '.join(IMAGE_SUFFIXES)}; remove the folder, or convert its files"
            )
        self.notes = (*_told_empty(root, empty), *_told_ignored(root, ignored))
        if name == "all" and not by_split:
            order = np.random.Generator(np.random.Philox(key=0)).permutation(len(files))
            files = [files[i] for i in order]
        self.name = f"folder:{path} {split}"
        ends = _bound(self.name, first, len(files)), _bound(self.name, last, len(files))
        files = files[slice(*ends)]
        if not files:
            raise UserError(f"split {split!r} of folder:{path} is empty")
        self.class_names = tuple(folder.name for folder in classes)
        self._files = files

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self._files)

    def identity(self) -> dict[str, Any]:
        """Returns what makes the split the one it is: see `Source.identity`."""
        names = "\n".join(f"{file.parent.name}/{file.name}" for file, _ in self._files)
        digest = hashlib.sha256(names.encode("utf-8", "surrogateescape"))
        return super().identity() | {"names": digest.hexdigest()[:16]}

    def read(self, indices: Sequence[int]) -> list[Example]:
        """Returns the examples at some indices, still encoded."""
        examples = []
        for i in indices:
            file, label = self._files[i]
            with storage_errors(file):
                examples.append(Example(file.read_bytes(), label))
        return examples

    def describe(self, index: int) -> str:
        """Names an image by its file."""
        return str(self._files[index][0])


def is_image(path: epath.Path) -> bool:
    """Tells whether a file is an image, by its suffix."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def is_hidden(path: epath.Path) -> bool:
    """Tells whether a file or a folder is none of a dataset's."""
    # Archives made on a Mac have a folder of files that are no images.
    return path.name.startswith((".", "__MACOSX"))


def subfolders(folder: epath.Path) -> list[epath.Path]:
    """Returns the folders in a folder, sorted, without hidden ones."""
    return sorted(
        entry
        for entry in folder.iterdir()
        # To ask a bucket, for each of a million images, whether it is a folder takes
        # hours.
        if not is_hidden(entry) and not is_image(entry) and entry.is_dir()
    )


def _parse_split(split: str) -> tuple[str, str, str]:
    """Splits `name[a:b]`, with bounds such as `80%` or `1000`, into its parts."""
    match = re.fullmatch(r"([^\[\]]+)(?:\[(\d+%?)?:(\d+%?)?\])?", split)
    if not match:
        raise UserError(f"split {split!r}: write a name, or a slice as in 'all[:80%]'")
    name, first, last = match.groups()
    return name, first or "", last or ""


def _bound(name: str, text: str, count: int) -> int | None:
    """Returns where a slice of so many examples begins or ends."""
    if not text:
        return None
    number, most = (int(text[:-1]), 100) if text[-1] == "%" else (int(text), count)
    if number > most:
        raise UserError(f"{name}: {text} is beyond the {count:,} images that there are")
    return round(count * number / 100) if text[-1] == "%" else number


def _images(folder: epath.Path) -> tuple[list[epath.Path], list[str]]:
    """Returns the images of a class in order, and the endings of its other files."""
    images, others = [], []
    for file in sorted(folder.iterdir()):
        if is_hidden(file):
            continue
        if is_image(file):
            images.append(file)
        else:
            others.append(file.suffix.lower())
    return images, others


def _told_empty(root: epath.Path, empty: Sequence[epath.Path]) -> list[str]:
    # A split may lack a class, whose folder keeps the numbers of the others.
    shown = ", ".join(folder.name for folder in empty[:5])
    more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
    return [f"{root} has no images of {shown}{more}"] if empty else []


def _told_ignored(root: epath.Path, endings: Sequence[str]) -> list[str]:
    if not endings:
        return []
    kinds = ", ".join(sorted({ending or "none" for ending in endings})[:5])
    return [
        f"{root}: {len(endings):,} files are left out, which are no images by their "
        f"endings ({kinds})"
    ]
