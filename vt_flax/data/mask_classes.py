"""Which features of a TFDS dataset are image and mask, and what classes masks have."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from vt_flax.data.known_masks import KNOWN_MASKS, KnownMask
from vt_flax.data.masks import (
    CLASS_NAMES,
    IGNORE,
    MIRRORED,
    MOST_CLASSES,
    RESIZED_FROM,
    identity_table,
    label_table,
    numbered_names,
)
from vt_flax.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class Classes:
    """The classes of a dataset's masks.

    Attributes:
      names: one for each class.
      mirrored: the class that each class becomes in a mirrored image; empty if none
        changes.
      table: (256,), uint8: what stored values become: a class, 255 for no label, 254
        for values that must not occur.
    """

    names: tuple[str, ...]
    mirrored: tuple[int, ...]
    table: np.ndarray


def mask_features(builder: Any) -> list[str]:
    """Returns the features that could be masks: images of one channel, 8 bits."""
    import tensorflow_datasets as tfds

    return [
        key
        # Without its code, a dataset's features come in any order.
        for key, feature in sorted(builder.info.features.items())
        if isinstance(feature, tfds.features.Image)
        and feature.shape[-1] == 1
        and feature.np_dtype == np.uint8
    ]


def find_features(
    builder: Any, mask_feature: str = "", image_feature: str = ""
) -> tuple[str, str]:
    """Returns the features that hold images and masks.

    Args:
      builder: of the dataset.
      mask_feature: the one with the masks; empty for the only one.
      image_feature: the one with the images; empty for `image`, or the only one.

    Raises:
      UserError: if there are none, or several to choose from.
    """
    import tensorflow_datasets as tfds

    features, known = builder.info.features, _known(builder)
    # The name as TFDS has it, with the configuration.
    name = builder.info.full_name.rpartition("/")[0]
    masks = mask_features(builder)
    listed = f"(one channel, 8 bits): {', '.join(masks) or 'there is none'}"
    if mask_feature and mask_feature not in masks:
        raise UserError(
            f"dataset {name!r} has no masks in a feature {mask_feature!r}; features "
            f"that could be masks {listed}"
        )
    if known and not mask_feature:
        if known.mask not in masks:
            raise UserError(
                f"dataset {name!r} has no masks: {known.mask!r} is not among its "
                "features; another configuration may have it"
            )
        mask_feature = known.mask
    if not mask_feature:
        if len(masks) != 1:
            raise UserError(
                f"dataset {name!r}: name the feature that holds the masks; features "
                f"that could be {listed}"
            )
        (mask_feature,) = masks
    images = [
        key
        for key, feature in sorted(features.items())
        if isinstance(feature, tfds.features.Image) and feature.shape[-1] == 3
    ]
    if image_feature and image_feature not in images:
        raise UserError(
            f"data.image_feature {image_feature!r}: dataset {name!r} has no images of "
            f"three channels of that name{nearest(image_feature, images)}"
        )
    preferred = image_feature or (known.image if known else "image")
    if preferred not in images and len(images) != 1:
        raise UserError(
            f"dataset {name!r} has no feature 'image', and {len(images)} others of "
            f"three channels{': ' if images else ''}{', '.join(images)}"
            f"{' (set data.image_feature)' if images else ''}"
        )
    return preferred if preferred in images else images[0], mask_feature


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
      label_map: what stored value i becomes; empty for what is known of the dataset.
      num_classes: number of classes; 0 for what is known.

    Raises:
      UserError: if too little is known, or what is given contradicts it.
    """
    name = builder.info.full_name.rpartition("/")[0]
    known = _known(builder)
    stored, mirrored = _stored_classes(builder, mask_feature)
    if label_map:
        classes = _mapped(name, tuple(label_map), num_classes, stored, mirrored)
    elif known and known.mask == mask_feature:
        classes = Classes(tuple(known.class_names), (), label_table(known.label_map))
    elif stored or num_classes:
        names = stored or numbered_names(range(num_classes))
        # Beyond the most, there is no table; the error is below.
        table = identity_table(min(len(names), MOST_CLASSES))
        classes = Classes(names, mirrored, table)
    else:
        raise UserError(
            f"dataset {name!r} does not tell how many classes its masks have: set "
            "their number (model.num_classes), or what each value means "
            "(segmentation.label_map)"
        )
    if num_classes and num_classes != len(classes.names):
        raise UserError(
            f"dataset {name!r} has {len(classes.names)} classes, not {num_classes} "
            "(model.num_classes): leave it 0, or give a segmentation.label_map"
        )
    if not 2 <= len(classes.names) <= MOST_CLASSES:
        raise UserError(
            f"dataset {name!r} has {len(classes.names)} classes; 2 to {MOST_CLASSES} "
            "are possible"
        )
    return classes


def _known(builder: Any) -> KnownMask | None:
    metadata = builder.info.metadata or {}
    return KNOWN_MASKS.get(metadata.get(RESIZED_FROM, builder.name))


def _stored_classes(
    builder: Any, mask_feature: str
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Returns names of stored values, and what mirroring makes of them, if known."""
    import tensorflow_datasets as tfds

    metadata = builder.info.metadata or {}
    if metadata.get(CLASS_NAMES):
        return tuple(metadata[CLASS_NAMES]), tuple(metadata.get(MIRRORED, ()))
    feature = builder.info.features[mask_feature]
    if isinstance(feature, tfds.features.LabeledImage) and feature.num_classes:
        return tuple(feature.names), ()
    return (), ()


def _mapped(
    name: str,
    label_map: tuple[int, ...],
    num_classes: int,
    stored: tuple[str, ...],
    mirrored: tuple[int, ...],
) -> Classes:
    """Returns the classes that a user's label map makes of the stored values."""
    if len(label_map) > 256:
        raise UserError(
            f"segmentation.label_map has {len(label_map)} entries; 256 values exist"
        )
    wrong = [i for i in label_map if not (0 <= i < MOST_CLASSES or i == IGNORE)]
    if wrong:
        raise UserError(
            f"segmentation.label_map: {wrong[0]} is no class (0 to {MOST_CLASSES - 1}),"
            f" nor {IGNORE} for no label"
        )
    used = sorted(set(label_map) - {IGNORE})
    count = num_classes or (used[-1] + 1 if used else 0)
    if used and used[-1] >= count:
        raise UserError(
            f"segmentation.label_map: class {used[-1]} is beyond model.num_classes "
            f"{count}"
        )
    if not num_classes and len(used) < count:
        missing = min(set(range(count)) - set(used))
        raise UserError(
            f"segmentation.label_map: no value becomes class {missing}, but one class "
            f"{used[-1]}; if that is meant, set model.num_classes"
        )
    sources = [
        [i for i, j in enumerate(label_map[: len(stored)]) if j == label]
        for label in range(count)
    ]
    names = tuple(
        "/".join(stored[i] for i in values) or numbered_names([label])[0]
        for label, values in enumerate(sources)
    )
    return Classes(
        names, _mirror(name, label_map, sources, mirrored), label_table(label_map)
    )


def _mirror(
    name: str,
    label_map: tuple[int, ...],
    sources: Sequence[Sequence[int]],
    mirrored: tuple[int, ...],
) -> tuple[int, ...]:
    """Returns what mirroring makes of classes, of what it makes of stored values."""
    if not mirrored:
        return ()
    table = label_table(label_map)
    result = []
    for label, values in enumerate(sources):
        images = {int(table[mirrored[i]]) for i in values} or {label}
        if len(images) > 1 or max(images) >= len(sources):
            raise UserError(
                f"segmentation.label_map: mirrored, class {label} of dataset {name!r} "
                f"would be {' and '.join(map(str, sorted(images)))}: map what is left "
                "and what is right alike"
            )
        result += images
    return tuple(result) if result != list(range(len(sources))) else ()
