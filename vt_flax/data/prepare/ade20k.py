"""ADE20K's 150 classes (MIT scene parsing benchmark) as a TFDS dataset."""

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from vt_flax.data.masks import IGNORE, label_table
from vt_flax.data.prepare import pair_files, pairs
from vt_flax.errors import UserError

CLASSES = 150
ROOT = "ADEChallengeData2016"
FOLDERS = {"train": "training", "validation": "validation"}


class Ade20k(pairs.PairsBuilder):
    """20,210 training and 2,000 validation scenes, 150 classes (Zhou et al., 2017).

    The labels of the MIT scene parsing benchmark of 2016: stored values 1 to 150 become
    classes 0 to 149, and 0, which is other objects, becomes 255.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    HOMEPAGE = "http://sceneparsing.csail.mit.edu"
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    the folder ADEChallengeData2016 that ADEChallengeData2016.zip of
    http://sceneparsing.csail.mit.edu unpacks to, with images/training/*.jpg,
    images/validation/*.jpg, annotations/training/*.png, annotations/validation/*.png
    and objectInfo150.txt
    """

    def _list(self, manual: epath.Path) -> pairs.Listing:
        wanted = self.MANUAL_DOWNLOAD_INSTRUCTIONS
        root = pair_files.subfolder(manual, ROOT, wanted)
        splits = {}
        for split, name in FOLDERS.items():
            images, masks = (
                pair_files.subfolder(root, f"{kind}/{name}", wanted)
                for kind in ("images", "annotations")
            )
            splits[split] = pair_files.pair_up(
                pair_files.images_in(images), pair_files.images_in(masks), images, masks
            )
        return pairs.Listing(splits, class_names(root / "objectInfo150.txt"))

    def _table(self) -> np.ndarray:
        return label_table([IGNORE, *range(CLASSES)])


def class_names(path: epath.Path) -> list[str]:
    """Returns the first name of each of the 150 classes.

    Args:
      path: of objectInfo150.txt: a header, then a line for each class, whose last
        column has its names, parted by commas.

    Raises:
      UserError: if it does not list 150 classes.
    """
    rows = [line.split("\t") for line in pair_files.read_lines(path)[1:]]
    try:
        indices = [int(row[0]) for row in rows]
    except ValueError:
        indices = []
    if indices != list(range(1, CLASSES + 1)):
        raise UserError(
            f"{path}: expected a header and {CLASSES} lines that begin with their "
            f"numbers, found {len(rows)} lines"
        )
    return [row[-1].partition(",")[0].strip() for row in rows]
