"""COCO 2017 with stuff labels as a TFDS dataset: 54 classes, or 171."""

import json
from collections.abc import Sequence

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from vt_flax.data.masks import IGNORE, NO_CLASS
from vt_flax.data.orientation import PNG_START
from vt_flax.data.pillow_decoder import decode_with_pillow
from vt_flax.data.prepare import pair_files, pairs
from vt_flax.errors import UserError

# Bit depth and color type in the header of a PNG.
RGB_8_BITS = bytes((8, 2))
FOLDERS = {"train": "train2017", "validation": "val2017"}

STUFF_THINGS = "stuffthingmaps_trainval2017/"

# Categories are numbered 1 to 182; these have no pixel (nightrome/cocostuff,
# labels.md). The masks store the number less one.
CATEGORIES = 182
UNUSED = frozenset((12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91))
USED = [number for number in range(1, CATEGORIES + 1) if number not in UNUSED]
LABEL_MAP = [
    NO_CLASS if number in UNUSED else USED.index(number)
    for number in range(1, CATEGORIES + 1)
]


# Ids of a panoptic mask's segments, as it stores them, and their classes.
Segments = Sequence[tuple[int, int]]


class CocoStuff(pairs.PairsBuilder):
    """118,287 training and 5,000 validation photographs with labels for stuff.

    `stuff54`, the default, has the labels of Detectron2's semantic FPN (Kirillov et
    al., 2019), made of COCO's panoptic annotations: class 0 is all things, classes 1 to
    53 are stuff in the order of the annotations, and what no segment covers is 255.

    `stuff171` has all classes of COCO-Stuff (Caesar et al., 2018), things and stuff, as
    its maps store them, without the 11 of 182 categories that have no pixel.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(
            name="stuff54", description="53 stuff classes, and one of all things."
        ),
        tfds.core.BuilderConfig(
            name="stuff171", description="91 stuff and 80 thing classes."
        ),
    ]
    HOMEPAGE = "https://cocodataset.org"
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    train2017/*.jpg and val2017/*.jpg, from train2017.zip and val2017.zip of
    https://cocodataset.org/#download; for stuff54 also
    annotations/panoptic_train2017.json, annotations/panoptic_val2017.json,
    annotations/panoptic_train2017/*.png and annotations/panoptic_val2017/*.png, from
    panoptic_annotations_trainval2017.zip there, and the two archives in it unpacked in
    annotations; for stuff171 instead
    stuffthingmaps_trainval2017/train2017/*.png and
    stuffthingmaps_trainval2017/val2017/*.png, from stuffthingmaps_trainval2017.zip of
    https://github.com/nightrome/cocostuff, unpacked by
    `unzip stuffthingmaps_trainval2017.zip -d stuffthingmaps_trainval2017`, and, for the
    names of the classes, labels.txt from there
    """

    def list_pairs(self, manual: epath.Path) -> pairs.Listing:
        """Returns the photographs and panoptic masks, or the maps of 171 classes."""
        masks = "annotations/panoptic_" if self._panoptic else STUFF_THINGS
        splits = {
            split: pair_files.pair_up(manual / name, manual / f"{masks}{name}")
            for split, name in FOLDERS.items()
        }
        if not self._panoptic:
            return pairs.Listing(splits, category_names(manual), LABEL_MAP)
        for split, found in splits.items():
            path = manual / f"{masks}{FOLDERS[split]}.json"
            names, segments = read_panoptic(path)
            splits[split] = [p._replace(extra=segments.get(p.name)) for p in found]
        return pairs.Listing(splits, names)

    @property
    def _panoptic(self) -> bool:
        return self.builder_config.name == "stuff54"

    def _values(self, pair: pair_files.Pair, encoded: bytes) -> np.ndarray:
        if self._panoptic:
            return panoptic_labels(encoded, pair.extra)
        return super()._values(pair, encoded)


def read_panoptic(path: epath.Path) -> tuple[list[str], dict[str, Segments]]:
    """Reads COCO's panoptic annotations, such as panoptic_train2017.json.

    Returns:
      The names of the classes: things, then each stuff category; and the segments of
      each mask by its name, without suffix.

    Raises:
      UserError: if they cannot be read.
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

    Args:
      encoded: an RGB PNG, whose pixels store red + 256 green + 65536 blue, the segment.
      segments: of the mask; pixels of none of them become 255.

    Raises:
      ValueError: if it cannot be read, or has no annotation.
    """
    if segments is None:
        raise ValueError("the panoptic annotations have no segments of it")
    if not encoded.startswith(PNG_START) or encoded[24:26] != RGB_8_BITS:
        raise ValueError("a panoptic mask must be an RGB PNG of 8 bits")
    pixels = np.asarray(decode_with_pillow(encoded), np.uint32)
    ids = pixels @ np.asarray([1, 1 << 8, 1 << 16], np.uint32)
    labels = np.full(ids.shape, IGNORE, np.uint8)
    for number, label in segments:
        labels[ids == number] = label
    return labels


def category_names(manual: epath.Path) -> list[str]:
    """Returns a name for each of the 171 classes.

    Lines of labels.txt of COCO-Stuff are `NUMBER: NAME`. Those without are numbered.
    """
    path = manual / "labels.txt"
    lines = pair_files.read_lines(path) if path.exists() else []
    names = {line.partition(":")[0]: line.partition(":")[2].strip() for line in lines}
    return [names.get(str(number)) or f"category {number}" for number in USED]
