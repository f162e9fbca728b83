"""Classes of the images in one folder, from a list in CSV beside the folder."""

import csv
import os
import re
from collections.abc import Sequence

from etils import epath

from vt_flax.data import imagenet
from vt_flax.errors import UserError

# Images of ImageNet's validation archive, whose classes need no list.
IMAGENET_VALIDATION = re.compile(r"ILSVRC2012_val_\d{8}\.\w+")


def read_labels(
    folder: epath.Path, images: Sequence[str]
) -> tuple[tuple[str, ...], dict[str, int], list[str]]:
    """Reads FOLDER.csv, which lies beside the folder FOLDER.

    It has a line FILE,CLASS for each image. A header is skipped, and files may be
    listed without their suffix or as paths.

    Args:
      folder: of the images.
      images: their file names.

    Returns:
      The listed classes, sorted by name, the class index of each listed image, and
      notes.

    Raises:
      UserError: if there is no list, or it lists none of these images.
    """
    file = folder.parent / f"{folder.name}.csv"
    notes = []
    if file.exists():
        class_of = _read_list(file, images)
    elif all(map(IMAGENET_VALIDATION.fullmatch, images)):
        names = imagenet.validation_labels()
        class_of = {f"ILSVRC2012_val_{i:08}": name for i, name in enumerate(names, 1)}
        notes.append(f"{folder}: the classes are those that ImageNet has published")
    else:
        raise UserError(
            f"no images in class folders of {folder}, but {len(images):,} beside them: "
            f"expected {folder}/CLASS/IMAGE, or {file} with a line FILE,CLASS for each "
            "image"
        )
    classes = sorted(set(class_of.values()))
    indices = {name: i for i, name in enumerate(classes)}
    labels = {}
    for image in images:
        name = class_of.get(image) or class_of.get(os.path.splitext(image)[0])
        if name:
            labels[image] = indices[name]
    if not labels:
        raise UserError(f"{file} lists none of the {len(images):,} images in {folder}")
    unlisted, missing = len(images) - len(labels), len(class_of) - len(labels)
    if unlisted:
        notes.append(f"{folder}: images left out that have no class: {unlisted:,}")
    if missing > 0:
        notes.append(f"{folder}: images that have a class but are missing: {missing:,}")
    return tuple(classes), labels, notes


def _read_list(file: epath.Path, images: Sequence[str]) -> dict[str, str]:
    """Returns the class of each file in a list, as both are written there."""
    known = {*images, *(os.path.splitext(image)[0] for image in images)}
    class_of: dict[str, str] = {}
    has_boxes = False
    try:
        # epath's read_text ignores the encoding.
        lines = file.read_bytes().decode("utf-8-sig").splitlines()
        for number, row in enumerate(csv.reader(lines), 1):
            if not row:
                continue
            name, label = [cell.strip() for cell in (*row, "")[:2]]
            name = os.path.basename(name)
            if number == 1 and name not in known:
                # Kaggle's list of ImageNet has boxes after the class.
                has_boxes = label == "PredictionString"
                continue
            if has_boxes:
                label = label.partition(" ")[0]
            if not label:
                raise UserError(f"{file}, line {number}: expected FILE,CLASS")
            if class_of.setdefault(name, label) != label:
                raise UserError(f"{file}, line {number}: {name} has two classes")
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file}: not a list in CSV ({error})") from error
    return class_of
