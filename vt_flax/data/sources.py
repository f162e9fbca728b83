"""Opens the splits of datasets: class folders, and TFDS datasets."""

import contextlib
import sys
from typing import Any

from ml_collections import ConfigDict

from vt_flax.data.folders import FolderSource
from vt_flax.data.host import tensorflow
from vt_flax.data.source import Source
from vt_flax.data.storage import how_to_prepare, is_folder, storage_errors, storage_path
from vt_flax.data.streams import TFDSStream
from vt_flax.data.tfds_sources import (
    TFDSSource,
    class_features,
    data_dir_of,
    has_random_access,
)
from vt_flax.errors import UserError, first_line, nearest
from vt_flax.paths import in_bucket

FOLDER_PREFIX = "folder:"
# Datasets that this package makes itself, without a download.
EMBEDDED = ("digits", "shapes")


def open_configured(config: ConfigDict, split: str) -> Source:
    """Opens a split of the dataset that a section `data` names: see `open_source`.

    Raises:
      UserError: also if `config.cache` asks for a stream in memory.
    """
    features = config.image_feature, config.label_feature
    source = open_source(config.name, split, config.data_dir, *features)
    if config.cache and isinstance(source, TFDSStream):
        raise UserError(f"data.cache needs random access; {source.how_to_convert}")
    return source


def open_source(
    name: str,
    split: str,
    data_dir: str = "",
    image_feature: str = "",
    label_feature: str = "",
) -> Source:
    """Opens a split of a dataset.

    Args:
      name: a TFDS dataset, as in `cifar10` or `imagenet2012:5.*.*`; or `folder:PATH`.
      split: in the syntax of TFDS, as in `train[:90%]` or `train+test`.
      data_dir: folder or bucket of the TFDS datasets; empty for TFDS's default.
      image_feature: feature of a TFDS dataset that holds the images; empty for the
        dataset's default.
      label_feature: likewise, the class labels.

    Returns:
      The split; a `TFDSStream` if a TFDS dataset is in a format without random access.

    Raises:
      UserError: if the dataset, the split or its images are not there, or if it has no
        class labels.
    """
    if name.startswith(FOLDER_PREFIX):
        if image_feature or label_feature:
            raise UserError(
                f"{name} has no features: leave data.image_feature and "
                "data.label_feature empty, which are for TFDS datasets"
            )
        path = name.removeprefix(FOLDER_PREFIX)
        if not path:
            raise UserError(f"data.name {name}: write the folder's path, folder:PATH")
        return FolderSource(storage_path(path), split)
    builder = prepared_builder(name, data_dir)
    keys = class_features(builder, name, image_feature, label_feature)
    kind = TFDSSource if has_random_access(builder) else TFDSStream
    return kind(builder, name, split, keys)


def tfds_builder(name: str, data_dir: str = "") -> Any:
    """Returns the builder of a TFDS dataset, prepared or not; see `open_source`.

    Raises:
      UserError: if TFDS knows no such dataset, version or configuration, or the folder
        or bucket cannot be read.
    """
    if data_dir:
        data_dir = str(storage_path(data_dir))
        # Raises errors that TFDS would take for a dataset that is not prepared.
        is_folder(data_dir)
    tensorflow()  # without its GPUs, before TFDS imports it
    import tensorflow_datasets as tfds
    from google.protobuf import json_format

    from vt_flax.data.prepare import (  # noqa: F401, registers the builders
        ade20k,
        coco_stuff,
        digits,
        image_mask_folder,
        lip,
        shapes,
    )

    try:
        with storage_errors(data_dir or name):
            builder = tfds.builder(name, data_dir=data_dir or None)
    except (ValueError, AssertionError, json_format.ParseError) as error:
        reason, hint = first_line(error), ""
        if isinstance(error, tfds.core.registered.DatasetNotFoundError):
            reason = f"not known to TFDS, nor prepared in {data_dir or 'its folder'}"
            hint = nearest(name, tfds.list_builders(with_community_datasets=False))
        raise UserError(
            f"dataset {name!r}: {reason}; for images in class folders write "
            f"folder:PATH{hint}"
        ) from error
    # TFDS drops all formats but the first where it has the dataset's code.
    stored = set(builder.info.as_proto.alternative_file_formats)
    for form in stored - {f.value for f in builder.info.alternative_file_formats}:
        builder.info.add_alternative_file_format(form)
    return builder


def prepared_builder(name: str, data_dir: str = "") -> Any:
    """Returns the builder of a prepared TFDS dataset, and prepares embedded ones.

    Raises:
      UserError: if the dataset is not known, or not prepared.
    """
    builder = tfds_builder(name, data_dir)
    if is_prepared(builder):
        return builder
    if builder.name not in EMBEDDED or in_bucket(builder.data_path):
        raise UserError(
            f"dataset {name!r} is not prepared in {builder.data_path}: "
            f"{how_to_prepare(name, data_dir_of(builder))}, or set data_dir"
        )
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    # Standard output is for a command's result.
    with storage_errors(builder.data_path), contextlib.redirect_stdout(sys.stderr):
        builder.download_and_prepare(file_format="array_record")
    return builder


def is_prepared(builder: Any) -> bool:
    """Returns whether a TFDS dataset is prepared, in any format.

    Raises:
      UserError: if its folder is there, but not all of the dataset.
    """
    with storage_errors(builder.data_path):
        if builder.is_prepared():
            return True
        if builder.data_path.exists():
            raise UserError(
                f"{builder.data_path} is there but holds no finished dataset: move it "
                "away and run again"
            )
        return False
