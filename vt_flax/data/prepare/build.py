"""Builds or resizes a TFDS dataset in array_record, ready for random access."""

import pathlib

from etils import epath
from rich.filesize import decimal
from tensorflow_datasets.core import DatasetBuilder
from tensorflow_datasets.core.download import DownloadConfig
from tensorflow_datasets.core.file_adapters import FileFormat

from vt_flax.data.mask_classes import CLASS_NAMES
from vt_flax.data.prepare.archives import check_archives
from vt_flax.data.prepare.image_mask_folder import ImageMaskFolder
from vt_flax.data.prepare.resize import Resized
from vt_flax.data.prepare.workspace import (
    errors_in_one_line,
    exclusive,
    remove_leftovers,
    say,
)
from vt_flax.data.sources import FOLDER_PREFIX, is_prepared, tfds_builder
from vt_flax.data.storage import storage_path
from vt_flax.data.tfds_sources import data_dir_of
from vt_flax.errors import UserError

FORMAT = FileFormat.ARRAY_RECORD
IMAGENET = "imagenet2012"


def prepare(
    name: str,
    data_dir: str,
    manual_dir: str = "",
    checksums: bool = True,
    ignore_label: str = "",
) -> DatasetBuilder:
    """Builds a dataset in array_record, unless it is there already.

    Args:
      name: a TFDS dataset, as in `cifar10`.
      data_dir: folder of the TFDS datasets.
      manual_dir: folder of files that TFDS cannot download; empty for TFDS's default,
        `DATA_DIR/downloads/manual`.
      checksums: whether ImageNet's archives must be the published ones, to the byte.
      ignore_label: see `ImageMaskFolder`.

    Raises:
      UserError: if it cannot be built. The next run removes what an interrupted one
        left; a finished dataset is never touched.
    """
    if name.startswith(FOLDER_PREFIX):
        raise UserError(f"{name}: class folders need no preparing")
    builder = tfds_builder(name, data_dir)
    if isinstance(builder, ImageMaskFolder):
        builder.ignore_label = ignore_label
    elif ignore_label:
        raise UserError(
            f"--ignore_label {ignore_label} is for image_mask_folder, not for {name}"
        )
    if not is_ready(builder, name):
        manual = manual_dir or pathlib.Path(data_dir, "downloads", "manual")
        _build(builder, storage_path(manual), checksums)
    return builder


def resize(source: DatasetBuilder, side: int, data_dir: str) -> DatasetBuilder:
    """Makes NAME_SIDE, a copy of a prepared dataset with at most that short side.

    Raises:
      UserError: if it cannot be made.
    """
    builder = Resized(source, side, data_dir)
    if not is_ready(builder, builder.name):
        _build(builder)
    return builder


def _build(
    builder: DatasetBuilder, manual: epath.Path | None = None, checksums: bool = False
) -> None:
    folder = pathlib.Path(builder.data_path)
    with errors_in_one_line(f"building {builder.info.full_name}"):
        if builder.name == IMAGENET:
            check_archives(manual, checksums)
        with exclusive(folder.parent):
            remove_leftovers(folder.parent, f"??????_{folder.name}")
            builder.download_and_prepare(
                file_format=FORMAT, download_config=DownloadConfig(manual_dir=manual)
            )


def is_ready(builder: DatasetBuilder, name: str) -> bool:
    """Returns whether a dataset, called `name` by the user, is there in array_record.

    Raises:
      UserError: if it is there in another format or in part.
    """
    if not is_prepared(builder):
        return False
    if FORMAT not in builder.info.available_file_formats():
        raise UserError(
            f"{builder.info.full_name} is in {builder.data_path} as "
            f"{builder.info.file_format.value}: make array_record of it by `python -m "
            f"vt_flax.prepare_data convert {name} --data_dir {data_dir_of(builder)}`"
        )
    say(
        f"{builder.info.full_name} is already prepared in {builder.data_path} and "
        "stays as it is; to make it anew, move it away first"
    )
    return True


def describe(builder: DatasetBuilder, name: str) -> str:
    """Returns lines on a prepared dataset, which `open_source` finds by `name`."""
    splits = ", ".join(
        f"{split} {found.num_examples:,}"
        for split, found in builder.info.splits.items()
    )
    names = (builder.info.metadata or {}).get(CLASS_NAMES)
    classes = f"{len(names)} classes, " if names else ""
    return (
        f"{builder.info.full_name} in {builder.data_path}: {splits} examples, "
        f"{classes}{decimal(builder.info.dataset_size)}\n"
        f"use it by --config.data.name={name} "
        f"--config.data.data_dir={data_dir_of(builder)}"
    )
