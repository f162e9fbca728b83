"""ADE20K's 150 classes (MIT scene parsing benchmark) as a TFDS dataset."""

from etils import epath

from vt_flax.data.masks import IGNORE
from vt_flax.data.prepare import pairs
from vt_flax.errors import UserError

CLASSES = 150
FOLDERS = {"train": "training", "validation": "validation"}


class Ade20k(pairs.PairsBuilder):
    """20,210 training and 2,000 validation scenes, 150 classes (Zhou et al., 2017).

    The labels of the MIT scene parsing benchmark of 2016: stored values 1 to 150 become
    classes 0 to 149, and 0, which is other objects, becomes 255.
    """

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
        splits = pairs.pair_splits(root, "images/{}", "annotations/{}", FOLDERS)
        names = class_names(root / "objectInfo150.txt")
        return pairs.Listing(splits, names, [IGNORE, *range(CLASSES)])


def class_names(path: epath.Path) -> list[str]:
    """Returns the first name of each class that objectInfo150.txt lists.

    Its lines are a header, then one for each class: the number first, and in the last
    of the columns, which tabs separate, the names, which commas separate.
    """
    lines = [line.split("\t") for line in pairs.read_lines(path)[1:]]
    if [line[0] for line in lines] != [str(i + 1) for i in range(CLASSES)]:
        raise UserError(
            f"{path}: expected a header and {CLASSES} lines that begin with their "
            f"numbers, found {len(lines)} lines"
        )
    return [line[-1].partition(",")[0].strip() for line in lines]
