"""Look into Person, single persons parsed into 20 classes, as a TFDS dataset."""

from collections.abc import Mapping, Sequence

import tensorflow_datasets as tfds
from etils import epath

from vt_flax.data.prepare import pair_files, pairs
from vt_flax.data.prepare.workspace import say
from vt_flax.errors import UserError

CLASS_NAMES = (
    "Background Hat Hair Glove Sunglasses Upper-clothes Dress Coat Socks Pants "
    "Jumpsuits Scarf Skirt Face Left-arm Right-arm Left-leg Right-leg Left-shoe "
    "Right-shoe"
).split()
# The folders of images and of masks, and the list of names.
SPLITS = {
    "train": ("train_images", "train_segmentations", "train_id.txt"),
    "validation": ("val_images", "val_segmentations", "val_id.txt"),
}


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
    MIRRORED = (*range(14), 15, 14, 17, 16, 19, 18)

    def _list(self, manual: epath.Path) -> pairs.Listing:
        splits = {}
        for split, (image_name, mask_name, list_name) in SPLITS.items():
            images = self._folder(manual, image_name)
            masks = self._folder(manual, mask_name)
            files = pair_files.images_in(images), pair_files.images_in(masks)
            names = find_list(manual, (images, masks), list_name)
            if names is not None:
                files = select(names, images, *files)
            splits[split] = pair_files.pair_up(*files, images, masks)
        return pairs.Listing(splits, CLASS_NAMES)

    def _folder(self, manual: epath.Path, name: str) -> epath.Path:
        folder = pair_files.find_folder(manual, name)
        # Where it should be, to say so.
        return folder or pair_files.subfolder(
            manual, name, self.MANUAL_DOWNLOAD_INSTRUCTIONS
        )


def find_list(
    manual: epath.Path, folders: Sequence[epath.Path], name: str
) -> epath.Path | None:
    """Finds a list of names in or above some folders, up to the manual one; or None."""
    for folder in folders:
        while folder != manual:
            folder = folder.parent
            if (folder / name).exists():
                return folder / name
    return None


def select(
    names: epath.Path,
    folder: epath.Path,
    images: Mapping[str, epath.Path],
    masks: Mapping[str, epath.Path],
) -> tuple[dict[str, epath.Path], dict[str, epath.Path]]:
    """Returns the images and masks, given by name, that a list of names has.

    Args:
      names: the list, a name a line.
      folder: of the images.
      images: files by name.
      masks: files by name.

    Raises:
      UserError: if the list cannot be read, or has a name that there is no file of.
    """
    listed = {line.strip() for line in pair_files.read_lines(names)} - {""}
    missing = sorted(listed - images.keys() - masks.keys())
    if missing:
        raise UserError(f"{names} lists {missing[0]}, but {folder} has no such image")
    left_out = len(images.keys() - listed)
    if left_out:
        say(f"{names} does not list {left_out:,} images of {folder}: they are left out")
    return tuple(
        {name: file for name, file in files.items() if name in listed}
        for files in (images, masks)
    )
