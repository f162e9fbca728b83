"""A user's own images and masks, in two folders, as a TFDS dataset."""

import re
import sys
from collections.abc import Sequence

import numpy as np
from etils import epath

from vt_flax.data.masks import (
    IGNORE,
    MAX_CLASSES,
    NO_CLASS,
    absent_classes,
    histogram,
    label_table,
    numbered_names,
)
from vt_flax.data.prepare import pairs
from vt_flax.data.prepare.threads import in_threads
from vt_flax.errors import UserError, first_names

# Meanings of 255 in masks: no label, or a class like every other value.
NO_LABEL, A_CLASS = "255", "none"


class ImageMaskFolder(pairs.PairsBuilder):
    """Images and their masks from a folder.

    Files whose EXIF orientation is not upright are rejected. Without classes.txt there
    are as many classes as the highest label implies. Images without split folders are
    the split `train`, of which `train[:90%]` and `train[90%:]` are slices.

    Attributes:
      ignore_label: whether 255 means no label (`255`) or is a class (`none`); empty: no
        label, and an error where the masks leave that in doubt.
    """

    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    images/SPLIT/NAME.jpg (or .png and others) and masks/SPLIT/NAME.png for each, in
    subfolders if you like; without split folders, images/NAME.jpg and masks/NAME.png,
    the only split is train; and, if you have names for the classes, classes.txt, one
    name a line from class 0. Masks are gray PNGs of class indices, and 255 where there
    is no label
    """
    STRICT = True
    HINT = (
        ": store class indices from 0 and name each class in classes.txt, the "
        "background too; if every value is a class, add --ignore_label none and name "
        "as many classes as values"
    )

    ignore_label = ""

    def list_pairs(self, manual: epath.Path) -> pairs.Listing:
        """Returns the images and masks, with the class of each value that occurs."""
        images, masks = manual / "images", manual / "masks"
        splits = split_up(images, pairs.pair_up(images, masks))
        path = manual / "classes.txt"
        given = pairs.read_lines(path) if path.exists() else []
        if "" in given or len({*given}) < len(given):
            raise UserError(f"{path}: a name is empty or there twice; write one a line")
        pixels = {
            split: sum(in_threads(self._histogram, some))
            for split, some in splits.items()
        }
        total = sum(pixels.values())
        names, table = assign_classes(masks, total, given, self.ignore_label)
        for split, counts in pixels.items():
            absent = first_names(absent_classes(counts, table, names))
            print(
                f"note: {split}: {len(names)} classes; the masks have "
                f"{describe_pixels(counts)}"
                + (f", and no pixel of {absent}" if absent else ""),
                file=sys.stderr,
            )
        return pairs.Listing(splits, names, table.tolist())

    def _histogram(self, pair: pairs.Pair) -> np.ndarray:
        return histogram(self.read_mask(pair)[1])


def split_up(
    images: epath.Path, found: Sequence[pairs.Pair]
) -> dict[str, list[pairs.Pair]]:
    """Returns pairs by the first folder in their names, or all in `train`."""
    if len({"/" in pair.name for pair in found}) > 1:
        raise UserError(
            f"{images} has both images and folders: put each image into the folder of "
            "a split, or all of them beside each other"
        )
    splits: dict[str, list[pairs.Pair]] = {}
    for pair in found:
        folder, slash, name = pair.name.partition("/")
        split = folder if slash else "train"
        splits.setdefault(split, []).append(pair._replace(name=name or folder))
    for split in splits:
        # TFDS would build it, but not read it.
        if not re.fullmatch(r"\w+", split):
            raise UserError(
                f"{images / split}: a split cannot have this name: rename it, with "
                "letters, digits and _ alone"
            )
    return splits


def assign_classes(
    folder: epath.Path, pixels: np.ndarray, given: Sequence[str], ignore_label: str
) -> tuple[Sequence[str], np.ndarray]:
    """Returns the names of the classes and a table (256,) of the class of each value.

    Values are class indices, and 255 means no label. With `none` for `ignore_label`
    every value is a class: if there are as many values as names, or 255 is among them
    and there are no names, they are the classes in ascending order.

    Args:
      folder: of the masks, for messages.
      pixels: (256,), histogram of all masks.
      given: names of the classes; empty if there is no list of them.
      ignore_label: see `ImageMaskFolder`.
    """
    content = f"the masks have {describe_pixels(pixels)}"
    every = ignore_label == A_CLASS
    values = np.flatnonzero(pixels).tolist()
    labels = [v for v in values if every or v != IGNORE]
    names = given or numbered_names(max(labels, default=0) + 1)
    absent = [name for i, name in enumerate(names) if i not in labels]
    if IGNORE in values and not ignore_label and (absent or len(labels) < 2):
        raise UserError(
            f"{folder}: {content}, and none of {first_names(absent) or 'another class'}"
            f": add --ignore_label {A_CLASS} if {IGNORE} is a class, or --ignore_label "
            f"{NO_LABEL} if it means no label"
        )
    if every and (len(labels) == len(given) if given else IGNORE in labels):
        names = given or numbered_names(len(labels))
        table = np.full(256, NO_CLASS, np.uint8)
        table[labels] = range(len(labels))
    else:
        table = label_table(range(len(names))[:MAX_CLASSES])
        table[IGNORE] = NO_CLASS if every else IGNORE
    if not 2 <= len(names) <= MAX_CLASSES:
        raise UserError(
            f"{folder}: {len(names)} classes; 2 to {MAX_CLASSES} are possible, the "
            f"background among them; {content}"
        )
    return names, table


def describe_pixels(pixels: np.ndarray) -> str:
    """Returns the values of a histogram (256,) that occur, with their counts."""
    return first_names(f"{v} ({pixels[v]:,} pixels)" for v in np.flatnonzero(pixels))
