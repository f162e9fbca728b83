"""ImageNet's classes, and the labels of its validation images."""

from importlib import resources

from vt_flax.data.host import tensorflow

CLASSES = 1000


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
