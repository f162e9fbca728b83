"""Builds and resizes TFDS datasets in array_record, which has random access."""

import contextlib
import pathlib
import sys
from collections.abc import Iterator

from etils import epath
from rich.filesize import decimal
from tensorflow_datasets.core import DatasetBuilder
from tensorflow_datasets.core.download import DownloadConfig
from tensorflow_datasets.core.file_adapters import FileFormat

from vt_flax.data.prepare.image_mask_folder import ImageMaskFolder
from vt_flax.data.prepare.resize import Resized
from vt_flax.data.segmentation_sources import CLASS_NAMES
from vt_flax.data.sources import FOLDER_PREFIX, is_prepared, tfds_builder
from vt_flax.data.storage import storage_path
from vt_flax.data.tfds_sources import data_dir_of
from vt_flax.errors import UserError

FORMAT = FileFormat.ARRAY_RECORD
# ImageNet's archives. TFDS would leave out the split of a missing one.
ARCHIVES = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"


def prepare(
    name: str, data_dir: str, manual_dir: str = "", ignore_label: str = ""
) -> DatasetBuilder:
    """Builds a dataset in array_record, unless it is there already.

    Args:
      name: a TFDS dataset, as in `cifar10`.
      data_dir: folder of the TFDS datasets.
      manual_dir: folder of files that TFDS cannot download; empty for
        `DATA_DIR/downloads/manual`.
      ignore_label: see `ImageMaskFolder`.
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
    manual = storage_path(manual_dir or pathlib.Path(data_dir, "downloads", "manual"))
    _build(builder, name, manual)
    return builder


def resize(source: DatasetBuilder, side: int, data_dir: str) -> DatasetBuilder:
    """Makes NAME_SIDE, a copy of a prepared dataset with at most that short side."""
    builder = Resized(source, side, data_dir)
    _build(builder, builder.name)
    return builder


def _build(
    builder: DatasetBuilder, name: str, manual: epath.Path | None = None
) -> None:
    """Builds a dataset, which the user calls `name`, unless it is there already."""
    info = builder.info
    if not is_prepared(builder):
        with errors_in_one_line(f"building {info.full_name}"):
            for archive in ARCHIVES if builder.name == "imagenet2012" else ():
                if not (manual / archive).exists():
                    raise UserError(
                        f"{manual / archive} is not there: get {' and '.join(ARCHIVES)}"
                        " from https://image-net.org/download-images and name their "
                        "folder by --manual_dir"
                    )
            builder.download_and_prepare(
                file_format=FORMAT, download_config=DownloadConfig(manual_dir=manual)
            )
    elif FORMAT in info.available_file_formats():
        print(
            f"{info.full_name} is already prepared in {builder.data_path} and stays as "
            "it is; to make it anew, move it away first",
            file=sys.stderr,
        )
    else:
        raise UserError(
            f"{info.full_name} is in {builder.data_path} as {info.file_format.value}: "
            "make array_record of it by `vt_flax prepare_data convert "
            f"{name} --data_dir {data_dir_of(builder)}`"
        )


@contextlib.contextmanager
def errors_in_one_line(action: str) -> Iterator[None]:
    """Turns every error of TFDS, downloads, archives and disks into a `UserError`.

    What TFDS prints goes to standard error; standard output is for the result.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:1500]
        raise UserError(f"{action}: {type(error).__name__}: {reason}") from error


def describe(builder: DatasetBuilder, name: str) -> str:
    """Returns two lines on a prepared dataset: its content, and how to use it."""
    info = builder.info
    counts = [f"{split.name} {split.num_examples:,}" for split in info.splits.values()]
    names = (info.metadata or {}).get(CLASS_NAMES)
    classes = f"{len(names)} classes, " if names else ""
    return (
        f"{info.full_name} in {builder.data_path}: {', '.join(counts)} examples, "
        f"{classes}{decimal(info.dataset_size)}\n"
        f"use it by --config.data.name={name} "
        f"--config.data.data_dir={data_dir_of(builder)}"
    )
