"""ImageNet's classes, and the labels of its validation images."""

import re
from collections.abc import Sequence
from importlib import resources

from vt_flax.data.host import tensorflow

CLASSES = 1000
# Images of the validation archive, numbered from 1.
VALIDATION_IMAGE = re.compile(r"ILSVRC2012_val_(\d{8})\.\w+")


def class_names() -> list[str]:
    """Returns the classes' WordNet ids, in the order in which networks know them."""
    file = resources.files("vt_flax.data").joinpath("imagenet_classes.txt")
    return file.read_text("utf-8").split()


def validation_labels() -> list[str]:
    """Returns the WordNet ids of ILSVRC2012_val_00000001 to 00050000, from TFDS."""
    tensorflow()  # without its GPUs, before TFDS imports it
    import tensorflow_datasets as tfds

    path = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt")
    return path.read_text().split()


def labels_of(images: Sequence[str]) -> tuple[list[str], list[int]] | None:
    """Returns the classes, sorted by name, and the class index of each image.

    `images` are file names of the validation archive; None if any is not.
    """
    matches = [VALIDATION_IMAGE.fullmatch(image) for image in images]
    published = validation_labels() if all(matches) else []
    numbers = [int(match[1]) for match in matches if match]
    if not published or not 1 <= min(numbers) <= max(numbers) <= len(published):
        return None
    classes = sorted(set(published))
    indices = {name: i for i, name in enumerate(classes)}
    return classes, [indices[published[number - 1]] for number in numbers]
