"""ADE20K's 150 classes (MIT scene parsing benchmark) as a TFDS dataset."""

from etils import epath

from vt_flax.data.masks import IGNORE
from vt_flax.data.prepare import pairs

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
        # A header, then a line for each class, whose last column lists its names.
        lines = pairs.read_lines(root / "objectInfo150.txt")[1:]
        names = [line.split("\t")[-1].partition(",")[0].strip() for line in lines]
        return pairs.Listing(splits, names, [IGNORE, *range(len(names))])
