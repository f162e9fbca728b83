"""What the masks of datasets mean that say nothing about it themselves."""

import dataclasses
from collections.abc import Sequence

from vt_flax.data.masks import IGNORE, NO_CLASS


@dataclasses.dataclass(frozen=True)
class KnownMask:
    """What the masks of a dataset mean.

    Attributes:
      image: the feature that holds the image.
      mask: the feature that holds the mask.
      label_map: what stored value i becomes: a class, 255 for no label, or 254 for a
        value that must not occur.
      class_names: a name for each class.
    """

    image: str
    mask: str
    label_map: Sequence[int]
    class_names: Sequence[str]


# The ids of the 19 classes that count (mcordts/cityscapesScripts,
# cityscapesscripts/helpers/labels.py), and their names. All other ids up to 33, which
# is as far as they go in label files, are ignored in training and evaluation.
CITYSCAPES = {
    7: "road",
    8: "sidewalk",
    11: "building",
    12: "wall",
    13: "fence",
    17: "pole",
    19: "traffic light",
    20: "traffic sign",
    21: "vegetation",
    22: "terrain",
    23: "sky",
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}
CITYSCAPES_IDS = 34


def _map_of(stored: Sequence[int], count: int) -> tuple[int, ...]:
    """Returns a map of `count` values: the stored ones become 0, 1, ..., others 255."""
    return tuple(stored.index(i) if i in stored else IGNORE for i in range(count))


# The 11 classes to which Badrinarayanan, Kendall and Cipolla (SegNet, arXiv 1511.00561)
# have brought CamVid's 32, in the order of their masks; 255, or 11 there, is void.
CAMVID = (
    *("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car"),
    *("pedestrian", "bicyclist"),
)


# By the dataset's name in TFDS.
KNOWN_MASKS = {
    # Not in TFDS itself: one that was made of those masks.
    "camvid": KnownMask(
        "image", "segmentation_label", (*range(len(CAMVID)), IGNORE), CAMVID
    ),
    "cityscapes": KnownMask(
        "image_left",
        "segmentation_label",
        _map_of(list(CITYSCAPES), CITYSCAPES_IDS),
        tuple(CITYSCAPES.values()),
    ),
    # Values by the README of its annotations: 1 foreground, 2 background, 3 not
    # classified, which is a border of some pixels around the pet.
    "oxford_iiit_pet": KnownMask(
        "image",
        "segmentation_mask",
        (NO_CLASS, 1, 0, IGNORE),
        ("background", "pet"),
    ),
}
