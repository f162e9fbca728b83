"""ImageNet's classes, without its images."""

import tempfile

from vt_flax.data.host import tensorflow

CLASSES = 1000


def class_names() -> list[str]:
    """Returns the classes' names in their order, as `imagenet2012` has them: WordNet's.

    Class i of the networks that others have trained is the i-th of them.
    """
    # Late: only who wants the names waits for TFDS.
    tensorflow()  # without its GPUs, before TFDS imports it
    import tensorflow_datasets as tfds

    with tempfile.TemporaryDirectory() as empty:
        builder = tfds.builder("imagenet2012", data_dir=empty)
    return list(builder.info.features["label"].names)
