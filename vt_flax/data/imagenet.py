"""ImageNet's classes and the labels of its validation images, from the TFDS package."""

from vt_flax.data.host import tensorflow

CLASSES = 1000


def class_names() -> list[str]:
    """Returns the classes' WordNet ids, in the order in which networks know them."""
    return _lines("labels.txt")


def validation_labels() -> list[str]:
    """Returns the WordNet ids of ILSVRC2012_val_00000001 to 00050000."""
    return _lines("validation_labels.txt")


def _lines(name: str) -> list[str]:
    tensorflow()  # without its GPUs, before TFDS imports it
    import tensorflow_datasets as tfds

    return tfds.core.tfds_path(f"datasets/imagenet2012/{name}").read_text().split()
