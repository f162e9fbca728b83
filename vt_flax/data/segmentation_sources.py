"""TFDS datasets of images and masks: their features, their classes, and a source."""

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
from vt_flax.data.tfds_sources import TFDSSource
from vt_flax.errors import UserError

# Metadata of the TFDS datasets that this package makes: the classes' names; the class
# that each becomes in a mirrored image; the dataset that one is a smaller copy of.
CLASS_NAMES, MIRRORED, RESIZED_FROM = "class_names", "mirrored", "resized_from"

# The 11 classes to which Badrinarayanan, Kendall and Cipolla (SegNet, arXiv 1511.00561)
# brought CamVid's 32, in the order of their masks; 255, or 11 there, is void.
CAMVID_NAMES = (
    "sky, building, pole, road, pavement, tree, sign, fence, car, pedestrian, bicyclist"
).split(", ")
# Label map and class names of TFDS's datasets whose files do not have them.
KNOWN_CLASSES = {
    "camvid": ((*range(11), IGNORE), CAMVID_NAMES),
    # README of its annotations: 1 foreground, 2 background, 3 not classified, which is
    # a border of some pixels around the pet.
    "oxford_iiit_pet": ((NO_CLASS, 1, 0, IGNORE), ("background", "pet")),
}


class Classes(NamedTuple):
    """The classes of a dataset's masks."""

    names: tuple[str, ...]
    # Class of each class in a mirrored image; empty if none changes.
    mirrored: tuple[int, ...]
    # (256,), uint8: class of each stored value, 255: no label, 254: must not occur.
    table: np.ndarray


class TFDSPairs(TFDSSource):
    """A split of a TFDS dataset of images and masks.

    Args:
      builder, name, split: see `TFDSSource`.
      mask_feature, image_feature: see `find_features`.
      label_map, num_classes: see `find_classes`.

    Attributes:
      class_names, mirrored: see `Classes`.
      label_map: `Classes.table`.
    """

    def __init__(
        self,
        builder: Any,
        name: str,
        split: str,
        mask_feature: str = "",
        label_map: Sequence[int] = (),
        num_classes: int = 0,
        image_feature: str = "",
    ):
        keys = find_features(builder, mask_feature, image_feature)
        classes = find_classes(builder, keys[1], label_map, num_classes)
        super().__init__(builder, name, split, keys)
        self.class_names, self.mirrored, self.label_map = classes
        self._choices = {"label_map": self.label_map.tolist()}
        if image_feature:
            self._choices["image_feature"] = image_feature


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
    """Returns the features that hold images and masks.

    If not given, they are `image` or the only image, and the only mask.
    """
    images, masks = image_features(builder, 3), image_features(builder, 1)
    only_image, only_mask = (f[0] if len(f) == 1 else "" for f in (images, masks))
    image = image_feature or ("image" if "image" in images else only_image)
    mask = mask_feature or only_mask
    for option, feature, choices, kind in (
        ("segmentation.mask_feature", mask, masks, "masks (one channel, 8 bits)"),
        ("data.image_feature", image, images, "images of three channels"),
    ):
        if feature not in choices:
            raise UserError(
                f"dataset {_name(builder)!r}: {option} {feature!r} must name one of "
                f"its {kind}: {', '.join(choices) or 'it has none'}"
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
      builder: of the dataset.
      mask_feature: the feature that holds the masks.
      label_map: class of stored value i, or 255; empty for what the dataset has.
      num_classes: number of classes; 0 for what the dataset has.
    """
    metadata = builder.info.metadata or {}
    known = KNOWN_CLASSES.get(metadata.get(RESIZED_FROM, builder.name))
    # Only a LabeledImage has names.
    stored = getattr(builder.info.features[mask_feature], "names", None)
    stored = tuple(metadata.get(CLASS_NAMES) or stored or ())
    mirrored = tuple(metadata.get(MIRRORED, ()))
    if label_map and mirrored:
        raise UserError(
            f"dataset {_name(builder)!r} has classes that change sides in mirrored "
            "images, which segmentation.label_map does not map: leave it empty"
        )
    if label_map:
        classes = _mapped(label_map, num_classes, stored)
    elif known:
        classes = Classes(tuple(known[1]), (), label_table(known[0]))
    else:
        names = stored or numbered_names(num_classes)
        classes = Classes(names, mirrored, label_table(range(len(names))[:MAX_CLASSES]))
    count = len(classes.names)
    if not 2 <= count <= MAX_CLASSES or num_classes not in (0, count):
        raise UserError(
            f"dataset {_name(builder)!r} has {count or 'no known'} classes, with "
            f"model.num_classes {num_classes} (0 takes the dataset's), and must have 2 "
            f"to {MAX_CLASSES}: set model.num_classes or segmentation.label_map"
        )
    return classes


def _name(builder: Any) -> str:
    """Returns the name as TFDS has it, with the configuration."""
    return builder.info.full_name.rpartition("/")[0]


def _mapped(
    label_map: Sequence[int], num_classes: int, stored: tuple[str, ...]
) -> Classes:
    """Returns the classes that a label map makes of stored values and their names."""
    used = {*label_map} - {IGNORE}
    count = min(num_classes or len(used), MAX_CLASSES)
    wrong = used - {*range(count)}
    if wrong or len(label_map) > 256:
        raise UserError(
            f"segmentation.label_map needs at most 256 entries, each a class (0 to "
            f"{count - 1}, all in use unless model.num_classes is set) or {IGNORE} for "
            f"no label, not {min(wrong, default=f'{len(label_map)} entries')}"
        )
    table = label_table(label_map)
    names = [
        "/".join(name for i, name in enumerate(stored) if table[i] == label) or default
        for label, default in enumerate(numbered_names(count))
    ]
    return Classes(tuple(names), (), table)
