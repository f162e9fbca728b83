"""ADE20K's 150 classes (MIT scene parsing benchmark) as a TFDS dataset."""

import tensorflow_datasets as tfds
from etils import epath

from vt_flax.data.masks import IGNORE
from vt_flax.data.prepare import pair_files, pairs
from vt_flax.errors import UserError

CLASSES = 150
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

    def list_pairs(self, manual: epath.Path) -> pairs.Listing:
        """Returns the content of the folder that the archive unpacks to."""
        root = manual / "ADEChallengeData2016"
        splits = {
            split: pair_files.pair_up(
                root / "images" / name, root / "annotations" / name
            )
            for split, name in FOLDERS.items()
        }
        names = class_names(root / "objectInfo150.txt")
        return pairs.Listing(splits, names, [IGNORE, *range(CLASSES)])


def class_names(path: epath.Path) -> list[str]:
    """Returns the first name of each of the 150 classes.

    Args:
      path: of objectInfo150.txt: a header, then a line for each class, whose last
        column has its names, parted by commas.

    Raises:
      UserError: if it does not list 150 classes.
    """
    rows = [line.split("\t") for line in pair_files.read_lines(path)[1:]]
    if [row[0] for row in rows] != [str(i + 1) for i in range(CLASSES)]:
        raise UserError(
            f"{path}: expected a header and {CLASSES} lines that begin with their "
            f"numbers, found {len(rows)} lines"
        )
    return [row[-1].partition(",")[0].strip() for row in rows]
