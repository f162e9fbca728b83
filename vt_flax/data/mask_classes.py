"""Image and mask features of a TFDS dataset, and the classes of its masks."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from vt_flax.data.masks import (
    IGNORE,
    MAX_CLASSES,
    NO_CLASS,
    label_table,
    numbered_names,
)
from vt_flax.errors import UserError

# Metadata of the TFDS datasets that this package makes: the classes' names; the class
# that each becomes in a mirrored image; the dataset that one is a smaller copy of.
CLASS_NAMES, MIRRORED, RESIZED_FROM = "class_names", "mirrored", "resized_from"


class KnownMasks(NamedTuple):
    """Masks of a dataset whose files do not describe them."""

    image: str  # feature that holds the image
    mask: str  # feature that holds the mask
    label_map: Sequence[int]  # class of each stored value; 255: no label, 254: none
    class_names: Sequence[str]


# Ids of the 19 classes that count (mcordts/cityscapesScripts,
# cityscapesscripts/helpers/labels.py). All other ids up to 33 are ignored in training
# and evaluation.
CITYSCAPES = (
    *((7, "road"), (8, "sidewalk"), (11, "building"), (12, "wall"), (13, "fence")),
    *((17, "pole"), (19, "traffic light"), (20, "traffic sign"), (21, "vegetation")),
    *((22, "terrain"), (23, "sky"), (24, "person"), (25, "rider"), (26, "car")),
    *((27, "truck"), (28, "bus"), (31, "train"), (32, "motorcycle"), (33, "bicycle")),
)
CITYSCAPES_IDS, CITYSCAPES_NAMES = zip(*CITYSCAPES, strict=True)
# The 11 classes to which Badrinarayanan, Kendall and Cipolla (SegNet, arXiv 1511.00561)
# brought CamVid's 32, in the order of their masks; 255, or 11 there, is void.
CAMVID_NAMES = (
    *("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car"),
    *("pedestrian", "bicyclist"),
)

# By the dataset's name in TFDS.
KNOWN_MASKS = {
    "camvid": KnownMasks(
        "image", "segmentation_label", (*range(11), IGNORE), CAMVID_NAMES
    ),
    "cityscapes": KnownMasks(
        "image_left",
        "segmentation_label",
        [CITYSCAPES_IDS.index(i) if i in CITYSCAPES_IDS else IGNORE for i in range(34)],
        CITYSCAPES_NAMES,
    ),
    # README of its annotations: 1 foreground, 2 background, 3 not classified, which is
    # a border of some pixels around the pet.
    "oxford_iiit_pet": KnownMasks(
        "image", "segmentation_mask", (NO_CLASS, 1, 0, IGNORE), ("background", "pet")
    ),
}


class Classes(NamedTuple):
    """The classes of a dataset's masks.

    Attributes:
      names: one for each class.
      mirrored: class of each class in a mirrored image; empty if none changes.
      table: (256,), uint8: class of each stored value, 255 for no label, 254 for values
        that must not occur.
    """

    names: tuple[str, ...]
    mirrored: tuple[int, ...]
    table: np.ndarray


def image_features(builder: Any, channels: int) -> list[str]:
    """Returns the sorted features that are images of some number of channels.

    Images of one channel have 8 bits, like masks; depth has more.
    """
    import tensorflow_datasets as tfds

    return [
        key
        for key, feature in sorted(builder.info.features.items())
        if isinstance(feature, tfds.features.Image)
        and feature.shape[-1] == channels
        and (channels > 1 or feature.np_dtype == np.uint8)
    ]


def find_features(
    builder: Any, mask_feature: str = "", image_feature: str = ""
) -> tuple[str, str]:
    """Returns the features that hold images and masks: those given or, if empty, known.

    Raises:
      UserError: if there is none, or several to choose from.
    """
    known = _known(builder)
    images, masks = image_features(builder, 3), image_features(builder, 1)
    usual = "image" if "image" in images else _only(images)
    image = image_feature or (known.image if known else usual)
    mask = mask_feature or (known.mask if known else _only(masks))
    for option, feature, found, what in (
        ("segmentation.mask_feature", mask, masks, "masks (one channel, 8 bits)"),
        ("data.image_feature", image, images, "images of three channels"),
    ):
        if feature not in found:
            raise UserError(
                f"dataset {_name(builder)!r}: {option} {feature!r} must name one of "
                f"its {what}: {', '.join(found) or 'it has none'}"
            )
    return image, mask


def find_classes(
    builder: Any,
    mask_feature: str,
    label_map: Sequence[int] = (),
    num_classes: int = 0,
) -> Classes:
    """Returns the classes of a dataset's masks.

    Args:
      builder: of the prepared dataset.
      mask_feature: the feature that holds the masks.
      label_map: class of stored value i, or 255; empty for what is known.
      num_classes: number of classes; 0 for what is known.

    Raises:
      UserError: if too little is known, or what is given contradicts it.
    """
    name, known = _name(builder), _known(builder)
    metadata = builder.info.metadata or {}
    # Only a LabeledImage has names.
    stored = getattr(builder.info.features[mask_feature], "names", None)
    stored = tuple(metadata.get(CLASS_NAMES) or stored or ())
    mirrored = tuple(metadata.get(MIRRORED, ()))
    if label_map:
        classes = _mapped(label_map, num_classes, stored, mirrored)
    elif known and known.mask == mask_feature:
        classes = Classes(tuple(known.class_names), (), label_table(known.label_map))
    else:
        names = stored or numbered_names(num_classes)
        classes = Classes(names, mirrored, label_table(range(len(names))[:MAX_CLASSES]))
    count = len(classes.names)
    if num_classes not in (0, count):
        raise UserError(
            f"dataset {name!r} has {count} classes, not the {num_classes} of "
            "model.num_classes: set it to 0, or set segmentation.label_map"
        )
    if not 2 <= count <= MAX_CLASSES:
        raise UserError(
            f"dataset {name!r} has {count or 'no known'} classes, and must have 2 to "
            f"{MAX_CLASSES}: set model.num_classes or segmentation.label_map"
        )
    return classes


def _name(builder: Any) -> str:
    """Returns the name as TFDS has it, with the configuration."""
    return builder.info.full_name.rpartition("/")[0]


def _known(builder: Any) -> KnownMasks | None:
    metadata = builder.info.metadata or {}
    return KNOWN_MASKS.get(metadata.get(RESIZED_FROM, builder.name))


def _only(features: Sequence[str]) -> str:
    return features[0] if len(features) == 1 else ""


def _mapped(
    label_map: Sequence[int],
    num_classes: int,
    stored: tuple[str, ...],
    mirrored: tuple[int, ...],
) -> Classes:
    """Returns the classes that a label map makes of stored values and their names."""
    used = {*label_map} - {IGNORE}
    count = num_classes or max(used, default=-1) + 1
    wrong = used - {*range(min(num_classes or MAX_CLASSES, MAX_CLASSES))}
    if wrong or len(label_map) > 256:
        raise UserError(
            "segmentation.label_map needs at most 256 entries, each a class (from 0, "
            f"below {num_classes or MAX_CLASSES}) or {IGNORE} for no label, not "
            f"{min(wrong, default=f'{len(label_map)} entries')}"
        )
    missing = {*range(count)} - used
    if missing and not num_classes:
        raise UserError(
            f"segmentation.label_map: no value becomes class {min(missing)}; if that "
            "is meant, set model.num_classes"
        )
    table = label_table(label_map)
    names, result = [], []
    for label, default in enumerate(numbered_names(count)):
        values = [i for i in range(len(stored)) if table[i] == label]
        names.append("/".join(stored[i] for i in values) or default)
        # The class of each value of the class, when it is mirrored.
        found = {int(table[mirrored[i]]) for i in values if mirrored} or {label}
        if len(found) > 1 or max(found) >= count:
            raise UserError(
                f"segmentation.label_map: mirrored, class {label} would be "
                f"{' and '.join(map(str, sorted(found)))}: map left and right alike"
            )
        result += found
    changed = result != [*range(count)]
    return Classes(tuple(names), tuple(result) if changed else (), table)
