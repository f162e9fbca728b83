"""Look into Person, single persons parsed into 20 classes, as a TFDS dataset."""

from collections.abc import Sequence

import tensorflow_datasets as tfds
from etils import epath

from vt_flax.data.image_files import list_folder
from vt_flax.data.mask_classes import MIRRORED
from vt_flax.data.prepare import pair_files, pairs
from vt_flax.data.prepare.workspace import say
from vt_flax.errors import UserError

CLASS_NAMES = (
    "Background Hat Hair Glove Sunglasses Upper-clothes Dress Coat Socks Pants "
    "Jumpsuits Scarf Skirt Face Left-arm Right-arm Left-leg Right-leg Left-shoe "
    "Right-shoe"
).split()
SPLITS = {"train": "train", "validation": "val"}
# Levels below the manual folder that are searched.
MAX_DEPTH = 4


class Lip(pairs.PairsBuilder):
    """30,462 training and 10,000 validation persons, 20 classes (Gong et al., 2017).

    Masks may be grey PNGs or palette PNGs: their indices are the labels. In a mirrored
    image left and right arms, legs and shoes change places.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    HOMEPAGE = "http://sysu-hcp.net/lip"
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    what TrainVal_images.zip and TrainVal_parsing_annotations.zip of
    http://sysu-hcp.net/lip (single person) unpack to:
    TrainVal_images/train_images/*.jpg, TrainVal_images/val_images/*.jpg,
    TrainVal_images/train_id.txt, TrainVal_images/val_id.txt,
    TrainVal_parsing_annotations/train_segmentations/*.png and
    TrainVal_parsing_annotations/val_segmentations/*.png; the innermost folders and the
    lists may lie elsewhere in the manual folder, up to four folders down
    """

    def list_pairs(self, manual: epath.Path) -> pairs.Listing:
        """Returns the content of the unpacked archives, wherever their folders lie."""
        splits = {}
        for split, short in SPLITS.items():
            splits[split] = pair_files.pair_up(
                find(manual, f"{short}_images"),
                find(manual, f"{short}_segmentations"),
            )
            names = find(manual, f"{short}_id.txt")
            if names.exists():
                splits[split] = listed(splits[split], names)
        mirrored = [*range(14), 15, 14, 17, 16, 19, 18]
        return pairs.Listing(splits, CLASS_NAMES, metadata={MIRRORED: mirrored})


def find(manual: epath.Path, name: str) -> epath.Path:
    """Returns the highest file or folder of a name, or where it should be."""
    level = [manual]
    for _ in range(MAX_DEPTH):
        for folder in level:
            if (folder / name).exists():
                return folder / name
        level = [folder / inner for folder in level for inner in list_folder(folder)[0]]
    return manual / name


def listed(found: Sequence[pair_files.Pair], path: epath.Path) -> list[pair_files.Pair]:
    """Returns the pairs that a list has, a name a line.

    Raises:
      UserError: if it has a name without a pair.
    """
    names = {*pair_files.read_lines(path)}
    missing = names - {pair.name for pair in found}
    if missing:
        raise UserError(f"{path} lists {min(missing)}, of which there is no image")
    kept = [pair for pair in found if pair.name in names]
    if len(kept) < len(found):
        say(
            f"{path} does not list {len(found) - len(kept):,} images: they are left out"
        )
    return kept
