"""COCO 2017 with stuff labels as a TFDS dataset: 54 classes, or 171."""

import dataclasses
import io
import json
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image

from vt_flax.data.masks import IGNORE, NO_CLASS, label_table
from vt_flax.data.prepare import pair_files, pairs
from vt_flax.errors import UserError

FOLDERS = {"train": "train2017", "validation": "val2017"}
PANOPTIC, STUFF_THINGS = "annotations", "stuffthingmaps_trainval2017"
THINGS = "things"

# Categories are numbered 1 to 182; these have no pixel (nightrome/cocostuff,
# labels.md). The masks store the number less one.
CATEGORIES = 182
UNUSED = frozenset((12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91))
USED = [number for number in range(1, CATEGORIES + 1) if number not in UNUSED]


@dataclasses.dataclass(frozen=True)
class Segments:
    """The segments of a panoptic mask.

    Attributes:
      ids: (n,), uint32, which the mask stores.
      classes: (n,), uint8.
    """

    ids: np.ndarray
    classes: np.ndarray


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

    def _list(self, manual: epath.Path) -> pairs.Listing:
        images = {
            split: pair_files.subfolder(manual, name, self.MANUAL_DOWNLOAD_INSTRUCTIONS)
            for split, name in FOLDERS.items()
        }
        if self.builder_config.name == "stuff54":
            return self._list_panoptic(manual, images)
        splits = {}
        for split, folder in images.items():
            masks = pair_files.subfolder(
                manual,
                f"{STUFF_THINGS}/{folder.name}",
                self.MANUAL_DOWNLOAD_INSTRUCTIONS,
            )
            splits[split] = pair_files.pair_up(
                pair_files.images_in(folder), pair_files.images_in(masks), folder, masks
            )
        return pairs.Listing(splits, category_names(manual))

    def _list_panoptic(
        self, manual: epath.Path, images: dict[str, epath.Path]
    ) -> pairs.Listing:
        splits, names = {}, None
        for split, folder in images.items():
            masks = pair_files.subfolder(
                manual,
                f"{PANOPTIC}/panoptic_{folder.name}",
                self.MANUAL_DOWNLOAD_INSTRUCTIONS,
            )
            path = masks.with_suffix(".json")
            classes, segments = read_panoptic(path)
            if names not in (None, classes):
                raise UserError(
                    f"{path}: its categories are not those of the other file"
                )
            names = classes
            files = {name: masks / f"{name}.png" for name in segments}
            found = pair_files.pair_up(
                pair_files.images_in(folder), files, folder, masks
            )
            splits[split] = [
                dataclasses.replace(pair, extra=segments[pair.name]) for pair in found
            ]
        return pairs.Listing(splits, names)

    def _table(self) -> np.ndarray:
        if self.builder_config.name == "stuff54":
            return super()._table()
        label_map = np.full(CATEGORIES, NO_CLASS)
        label_map[np.asarray(USED) - 1] = range(len(USED))
        return label_table(label_map)

    def _values(self, pair: pair_files.PairFiles, encoded: bytes) -> np.ndarray:
        if self.builder_config.name == "stuff54":
            return panoptic_labels(encoded, pair.extra)
        return super()._values(pair, encoded)


def read_panoptic(path: epath.Path) -> tuple[list[str], dict[str, Segments]]:
    """Reads COCO's panoptic annotations.

    Args:
      path: of panoptic_train2017.json, or the like.

    Returns:
      The names of the classes: things, then each stuff category; and the segments of
      each mask by its name, without suffix.

    Raises:
      UserError: if it cannot be read.
    """
    try:
        content = json.loads(path.read_text())
        stuff = [c for c in content["categories"] if not c["isthing"]]
        classes = {c["id"]: 0 for c in content["categories"]}
        classes |= {c["id"]: i for i, c in enumerate(stuff, 1)}
        segments = {
            annotation["file_name"].removesuffix(".png"): _segments(
                annotation["segments_info"], classes
            )
            for annotation in content["annotations"]
        }
        return [THINGS, *(category["name"] for category in stuff)], segments
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    except (ValueError, TypeError, LookupError) as error:
        raise UserError(
            f"{path}: not COCO's panoptic annotations ({type(error).__name__}: {error})"
        ) from error


def _segments(segments: list[dict[str, Any]], classes: dict[int, int]) -> Segments:
    return Segments(
        np.asarray([segment["id"] for segment in segments], np.uint32),
        np.asarray([classes[s["category_id"]] for s in segments], np.uint8),
    )


def panoptic_labels(encoded: bytes, segments: Segments) -> np.ndarray:
    """Returns the labels (height, width), uint8, of a panoptic mask.

    Args:
      encoded: an RGB PNG, whose pixels store red + 256 green + 65536 blue, the segment.
      segments: and their classes. Pixels of none of them become 255.

    Raises:
      ValueError: if it cannot be read.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            mode, pixels = image.mode, np.asarray(image, np.uint32)
    except Exception as error:
        # Pillow's plugins raise OSError, SyntaxError, struct.error and more.
        raise ValueError(f"not a readable PNG ({error})") from error
    if mode != "RGB":
        raise ValueError(f"a panoptic mask must be an RGB PNG, this has mode {mode}")
    ids = pixels @ np.asarray([1, 1 << 8, 1 << 16], np.uint32)
    labels = np.full(ids.shape, IGNORE, np.uint8)
    for number, label in zip(segments.ids, segments.classes, strict=True):
        labels[ids == number] = label
    return labels


def category_names(manual: epath.Path) -> list[str]:
    """Returns a name for each of the 171 classes.

    They are in labels.txt of COCO-Stuff, lines of `NUMBER: NAME`, or else in COCO's
    annotations of things and of stuff; those that are in none are numbered.

    Args:
      manual: the folder of manual files.

    Raises:
      UserError: if one of these files is there but cannot be read.
    """
    names: dict[int, str] = {}
    path = manual / "labels.txt"
    if path.exists():
        for line in pair_files.read_lines(path):
            number, colon, name = line.partition(":")
            if not (colon and number.strip().isdecimal()):
                raise UserError(f"{path}: expected lines NUMBER: NAME, found {line!r}")
            names[int(number)] = name.strip()
    else:
        for kind in ("instances", "stuff"):
            path = manual / PANOPTIC / f"{kind}_val2017.json"
            if path.exists():
                names |= _categories(path)
    return [names.get(number, f"category {number}") for number in USED]


def _categories(path: epath.Path) -> dict[int, str]:
    try:
        return {c["id"]: c["name"] for c in json.loads(path.read_text())["categories"]}
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise UserError(
            f"{path}: not COCO's annotations ({type(error).__name__}: {error})"
        ) from error
