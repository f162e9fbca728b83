"""How many examples and classes a dataset has, also where it is not there."""

import dataclasses
import re
from typing import Any

from ml_collections import ConfigDict

from vt_flax.data.mask_classes import find_classes, find_features
from vt_flax.data.sources import EMBEDDED, FOLDER_PREFIX, tfds_builder
from vt_flax.data.tfds_sources import class_features
from vt_flax.errors import UserError
from vt_flax.models import model_task
from vt_flax.training.tasks import task_of

# ImageNet's training split, of `imagenet2012` and what `prepare_data` makes of it.
IMAGENET = re.compile(r"imagenet2012(_\d+)?(:.*)?")
IMAGENET_EXAMPLES, IMAGENET_CLASSES = 1_281_167, 1000


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a plan must know of a dataset.

    Attributes:
      examples: in the training split; 0 if that is not known.
      classes: 0 if that is not known.
      told: where it is from, as people read it.
    """

    examples: int
    classes: int
    told: str


def find_facts(config: ConfigDict, examples: int = 0) -> Facts:
    """Returns what is known of the configured dataset.

    Of one that is not prepared, ImageNet's size is known, and the classes of those
    whose code TFDS or this package has.

    Args:
      config: a resolved configuration.
      examples: in the training split, if the user has said so.

    Raises:
      UserError: if the dataset is not known at all, and something is to be known of it.
    """
    data, classes = config.data, config.model.num_classes
    if examples and classes:
        return Facts(examples, classes, "as stated")
    if data.name.startswith(FOLDER_PREFIX):
        return _opened(config, examples)
    builder = None
    try:
        builder = tfds_builder(data.name, data.data_dir)
    except UserError:
        if not IMAGENET.fullmatch(data.name):
            raise
    if builder and (builder.is_prepared() or builder.name in EMBEDDED):
        return _opened(config, examples)
    if IMAGENET.fullmatch(data.name):
        examples = examples or IMAGENET_EXAMPLES * (data.train_split == "train")
        return Facts(examples, classes or IMAGENET_CLASSES, "ImageNet's, published")
    return Facts(examples, classes or _classes(builder, config), "it is not prepared")


def _opened(config: ConfigDict, examples: int) -> Facts:
    source = task_of(config).open_source(config, config.data.train_split)
    classes = config.model.num_classes or len(source.class_names)
    return Facts(examples or len(source), classes, source.name)


def _classes(builder: Any, config: ConfigDict) -> int:
    if model_task(config.model.name) == "segmentation":
        settings = config.segmentation
        image = config.data.image_feature
        _, mask = find_features(builder, settings.mask_feature, image)
        return len(find_classes(builder, mask, settings.label_map).names)
    data = config.data
    _, label = class_features(
        builder, data.name, data.image_feature, data.label_feature
    )
    return builder.info.features[label].num_classes
