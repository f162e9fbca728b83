"""Images in class folders."""

import contextlib
import hashlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from vt_flax.data.orientation import orientation_in
from vt_flax.data.pillow_decoder import Decoded, decode_opened, has_more_than_8_bits
from vt_flax.data.source import Example, RandomAccessSource
from vt_flax.errors import UserError, nearest

# Formats whose images have 8 bits.
SUFFIXES_OF_8_BITS = (".jpg", ".jpeg", ".bmp", ".gif", ".webp")
# Other files of a split whose headers are read before a run starts, and images of more
# bits that are decoded then.
HEADERS, DECODED = 32, 8
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")


class FolderSource(RandomAccessSource):
    """Images in class folders: `PATH/SPLIT/CLASS/IMAGE`, or `PATH/CLASS/IMAGE`.

    The path may be a bucket's, as in `gs://BUCKET/PATH`.

    Without split folders the only split is `all`, in a fixed shuffled order, so that
    the slices `all[:80%]` and `all[80%:]` part it into training and test images.
    """

    def __init__(self, path: epath.Path, split: str):
        try:
            self._open(path.expanduser(), split)
        except OSError as error:
            place = error.filename or path
            raise UserError(f"{place}: {error.strerror or error}") from error

    def _open(self, path: epath.Path, split: str) -> None:
        if not path.is_dir():
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
        deep = _notes_on_levels(self.name, [file for file, _ in files])
        self.notes = (*self.notes, *deep)

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
            try:
                encoded = file.read_bytes()
            except OSError as error:
                raise UserError(f"{file}: {error.strerror or error}") from error
            examples.append(Example(encoded, label, orientation_in(encoded)))
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


def _notes_on_levels(name: str, files: Sequence[epath.Path]) -> list[str]:
    """Returns notes on images of 16 and 32 bits, from a small sample.

    Most formats have 8 bits: of JPEGs, say, no file is read.
    """
    files = [
        file for file in files if not str(file).lower().endswith(SUFFIXES_OF_8_BITS)
    ]
    deep: dict[int, list[tuple[epath.Path, Decoded]]] = {12: [], 16: [], 32: []}
    for file in files[:: -(-len(files) // HEADERS) or 1]:
        # An image that cannot be read is named when its turn comes.
        with (
            contextlib.suppress(Exception),
            file.open("rb") as stream,
            Image.open(stream) as image,
        ):
            if has_more_than_8_bits(image):
                decoded = decode_opened(image)
                deep[decoded.bits].append((file, decoded))
        if sum(map(len, deep.values())) == DECODED:
            break
    notes = []
    if deep[16] and all(decoded.is_dark for _, decoded in deep[16]):
        file, brightest = max(deep[16], key=lambda found: found[1].highest)
        notes.append(
            f"{name}: {file}, the brightest of {len(deep[16])} images of 16 bits that "
            f"were looked at: {brightest.note}"
        )
    if deep[32]:
        file, decoded = deep[32][0]
        notes.append(
            f"{name}: {file}: {decoded.note}; every image of 32 bits is stretched by "
            "its own levels: save 8 bits to keep the brightness of one to another"
        )
    return notes


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
