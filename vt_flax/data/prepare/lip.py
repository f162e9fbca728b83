"""Look into Person, single persons parsed into 20 classes, as a TFDS dataset."""

from etils import epath

from vt_flax.data.prepare import pairs
from vt_flax.data.segmentation_sources import MIRRORED

CLASS_NAMES = (
    "Background Hat Hair Glove Sunglasses Upper-clothes Dress Coat Socks Pants "
    "Jumpsuits Scarf Skirt Face Left-arm Right-arm Left-leg Right-leg Left-shoe "
    "Right-shoe"
).split()
FOLDERS = {"train": "train", "validation": "val"}


class Lip(pairs.PairsBuilder):
    """30,462 training and 10,000 validation persons, 20 classes (Gong et al., 2017).

    Masks may be gray PNGs or palette PNGs: their indices are the labels. In a mirrored
    image left and right arms, legs and shoes change places.
    """

    HOMEPAGE = "http://sysu-hcp.net/lip"
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    what TrainVal_images.zip and TrainVal_parsing_annotations.zip of
    http://sysu-hcp.net/lip (single person) unpack to:
    TrainVal_images/train_images/*.jpg, TrainVal_images/val_images/*.jpg,
    TrainVal_parsing_annotations/train_segmentations/*.png and
    TrainVal_parsing_annotations/val_segmentations/*.png
    """

    def list_pairs(self, manual: epath.Path) -> pairs.Listing:
        """Returns the content of the unpacked archives."""
        splits = pairs.pair_splits(
            manual,
            "TrainVal_images/{}_images",
            "TrainVal_parsing_annotations/{}_segmentations",
            FOLDERS,
        )
        mirrored = [*range(14), 15, 14, 17, 16, 19, 18]
        return pairs.Listing(splits, CLASS_NAMES, metadata={MIRRORED: mirrored})
