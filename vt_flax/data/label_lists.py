"""Classes of images that lie in one folder, from a list beside it."""

import csv
import os
import re
from collections.abc import Sequence

from etils import epath

from vt_flax.data import imagenet
from vt_flax.errors import UserError

# Images of ImageNet's validation archive, whose classes need no list.
IMAGENET_VALIDATION = re.compile(r"ILSVRC2012_val_\d{8}\.\w+")


def list_name(folder: str) -> str:
    """Returns the name of the list of a folder's images; it lies beside the folder."""
    return f"{folder}.csv"


def read_labels(
    folder: epath.Path, images: Sequence[str]
) -> tuple[tuple[str, ...], dict[str, int], list[str]]:
    """Returns class names, the class index of each listed image, and notes.

    The list is FOLDER.csv, beside the folder, with a line FILE,CLASS for each image. A
    header is skipped, and files may be listed without their suffix or as paths. The
    classes are all that are listed, sorted by name, as class folders are.

    Args:
      folder: of the images.
      images: their file names.

    Raises:
      UserError: if there is no list, or it is not one of these images.
    """
    file = folder.parent / list_name(folder.name)
    notes = []
    if file.exists():
        labels = _read_list(file, images)
    elif all(map(IMAGENET_VALIDATION.fullmatch, images)):
        names = imagenet.validation_labels()
        labels = {f"ILSVRC2012_val_{i:08}": name for i, name in enumerate(names, 1)}
        notes.append(f"{folder}: the classes are those that ImageNet has published")
    else:
        raise UserError(
            f"no images in class folders of {folder}, but {len(images):,} beside them: "
            f"expected {folder}/CLASS/IMAGE, or {file} with a line FILE,CLASS for each "
            "image"
        )
    classes = tuple(sorted(set(labels.values())))
    indices = {name: i for i, name in enumerate(classes)}
    found = {}
    for image in images:
        label = labels.get(image) or labels.get(_stem(image))
        if label:
            found[image] = indices[label]
    if not found:
        raise UserError(f"{file} lists none of the {len(images):,} images in {folder}")
    unlisted, absent = len(images) - len(found), len(labels) - len(found)
    if unlisted:
        notes.append(f"{folder}: images left out that have no class: {unlisted:,}")
    if absent > 0:
        notes.append(f"{folder}: images that have a class but are missing: {absent:,}")
    return classes, found, notes


def _read_list(file: epath.Path, images: Sequence[str]) -> dict[str, str]:
    """Returns the class name of each file in a list, as it is written there."""
    known = {*images, *map(_stem, images)}
    labels: dict[str, str] = {}
    has_boxes = False
    try:
        # epath's read_text takes no notice of the encoding.
        lines = file.read_bytes().decode("utf-8-sig").splitlines()
        for number, row in enumerate(csv.reader(lines), 1):
            name, label, *_ = [cell.strip() for cell in row] + ["", ""]
            name = os.path.basename(name)
            if number == 1 and name not in known:
                # Kaggle's list of ImageNet has boxes after the class.
                has_boxes = label == "PredictionString"
                continue
            if has_boxes:
                label = label.partition(" ")[0]
            if row and not label:
                raise UserError(f"{file}, line {number}: expected FILE,CLASS")
            if row and labels.setdefault(name, label) != label:
                raise UserError(f"{file}, line {number}: {name} has two classes")
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file}: not a list in CSV ({error})") from error
    return labels


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]
