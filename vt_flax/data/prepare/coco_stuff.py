"""COCO 2017 with stuff labels as a TFDS dataset of 54 classes."""

import json
from collections.abc import Sequence

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from vt_flax.data.masks import IGNORE
from vt_flax.data.pillow_decoder import decode_with_pillow
from vt_flax.data.prepare import pairs
from vt_flax.errors import UserError

FOLDERS = {"train": "train2017", "validation": "val2017"}

# Ids of a panoptic mask's segments, as it stores them, and their classes.
Segments = Sequence[tuple[int, int]]


class CocoStuff(pairs.PairsBuilder):
    """118,287 training and 5,000 validation photographs with labels for stuff.

    The labels are those of Detectron2's semantic FPN (Kirillov et al., 2019), made of
    COCO's panoptic annotations: class 0 is all things, classes 1 to 53 are stuff in the
    order of the annotations, and what no segment covers is 255.
    """

    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(
            name="stuff54", description="53 stuff classes, and one of all things."
        )
    ]
    HOMEPAGE = "https://cocodataset.org"
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    train2017/*.jpg and val2017/*.jpg, from train2017.zip and val2017.zip of
    https://cocodataset.org/#download; annotations/panoptic_train2017.json,
    annotations/panoptic_val2017.json, annotations/panoptic_train2017/*.png and
    annotations/panoptic_val2017/*.png, from panoptic_annotations_trainval2017.zip
    there, and the two archives in it unpacked in annotations
    """

    def list_pairs(self, manual: epath.Path) -> pairs.Listing:
        """Returns the photographs and their panoptic masks."""
        masks = "annotations/panoptic_{}"
        splits = pairs.pair_splits(manual, "{}", masks, FOLDERS)
        for split, name in FOLDERS.items():
            names, segments = read_panoptic(manual / f"{masks.format(name)}.json")
            splits[split] = [
                pair._replace(segments=segments.get(pair.name))
                for pair in splits[split]
            ]
        return pairs.Listing(splits, names)

    def decode_mask(self, pair: pairs.Pair, encoded: bytes) -> np.ndarray:
        """Decodes a panoptic mask by its segments."""
        return panoptic_labels(encoded, pair.segments)


def read_panoptic(path: epath.Path) -> tuple[list[str], dict[str, Segments]]:
    """Reads COCO's panoptic annotations, such as panoptic_train2017.json.

    Returns the names of the classes, things and then each stuff category, and the
    segments of each mask by its name, without suffix.
    """
    try:
        content = json.loads(path.read_text())
        stuff = [c for c in content["categories"] if not c["isthing"]]
        classes = {c["id"]: 0 for c in content["categories"]}
        classes |= {c["id"]: i for i, c in enumerate(stuff, 1)}
        segments = {
            annotation["file_name"].removesuffix(".png"): [
                (segment["id"], classes[segment["category_id"]])
                for segment in annotation["segments_info"]
            ]
            for annotation in content["annotations"]
        }
    except (ValueError, TypeError, LookupError) as error:
        raise UserError(
            f"{path}: not COCO's panoptic annotations ({type(error).__name__}: {error})"
        ) from error
    return ["things", *(category["name"] for category in stuff)], segments


def panoptic_labels(encoded: bytes, segments: Segments | None) -> np.ndarray:
    """Returns the labels (height, width), uint8, of a panoptic mask.

    Red + 256 green + 65536 blue is a pixel's segment; pixels of no segment become 255.
    """
    if segments is None:
        raise ValueError("the panoptic annotations have no segments of it")
    pixels = np.asarray(decode_with_pillow(encoded), np.uint32)
    ids = pixels @ np.asarray([1, 1 << 8, 1 << 16], np.uint32)
    labels = np.full(ids.shape, IGNORE, np.uint8)
    for number, label in segments:
        labels[ids == number] = label
    return labels
