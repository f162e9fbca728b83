"""Builds a TFDS dataset in array_record, ready for random access."""

import pathlib

from etils import epath
from rich.filesize import decimal
from tensorflow_datasets.core import DatasetBuilder
from tensorflow_datasets.core.download import DownloadConfig
from tensorflow_datasets.core.file_adapters import FileFormat

from vt_flax.data.masks import CLASS_NAMES
from vt_flax.data.prepare import archives
from vt_flax.data.prepare.image_mask_folder import (
    IGNORE_LABEL,
    MADE_OF,
    MADE_OF_FILES,
    ImageMaskFolder,
    digest_of_files,
    made_of,
)
from vt_flax.data.prepare.mask_values import NO_LABEL
from vt_flax.data.prepare.pairs import PairsBuilder
from vt_flax.data.prepare.workspace import (
    check_space,
    errors_in_one_line,
    exclusive,
    remove_interrupted_build,
    say,
)
from vt_flax.data.sources import FOLDER_PREFIX, tfds_builder
from vt_flax.data.storage import is_folder, storage_path
from vt_flax.data.tfds_sources import data_dir_of
from vt_flax.errors import UserError

FORMAT = FileFormat.ARRAY_RECORD
IMAGENET = "imagenet2012"
STAMP = ".verified_archives.json"
# What the files of ImageNet take, relative to its archives, as a bound. The archives
# round each image up to 512 bytes; array_record adds about 100 bytes to each and, to
# each file, up to 192 kB.
IMAGENET_SHARE = 1.02


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
      ignore_label: what 255 means in the masks of `image_mask_folder`: see
        `ImageMaskFolder`.

    Returns:
      The builder of the prepared dataset.

    Raises:
      UserError: if it cannot be built. What an interrupted run left is removed by the
        next one; a finished dataset is never touched.
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
    data_path = pathlib.Path(builder.data_path)
    manual = storage_path(manual_dir or pathlib.Path(data_dir, "downloads", "manual"))
    if is_ready(builder, name):
        if manual_dir:
            _check_made_of(builder, manual)
        _check_ignore_label(builder, ignore_label)
        say(f"{builder.info.full_name} is already prepared in {data_path}")
        return builder
    _check_manual(builder, manual, bool(manual_dir))
    imagenet = builder.name == IMAGENET
    with (
        errors_in_one_line(f"building {builder.info.full_name}"),
        exclusive(data_path.parent),
    ):
        if imagenet:
            needed = round(archives.find(manual, checksums) * IMAGENET_SHARE)
        elif isinstance(builder, PairsBuilder):
            needed = builder.expected_bytes(manual)
        else:
            needed = _expected_bytes(builder)
        remove_interrupted_build(data_path)
        check_space(data_path.parent, needed)
        if imagenet and checksums:
            archives.verify(manual, data_path.parent / STAMP)
        if imagenet:
            # TFDS's progress bars do not know where they end.
            say("all of ImageNet: 1,281,167 training and 50,000 validation images")
        builder.download_and_prepare(
            file_format=FORMAT, download_config=DownloadConfig(manual_dir=manual)
        )
    builder = tfds_builder(name, data_dir)
    check_complete(builder)
    return builder


def is_ready(builder: DatasetBuilder, name: str) -> bool:
    """Tells whether a dataset, called `name` by the user, stands in array_record.

    Raises:
      UserError: if it stands there in another format, or something else does.
    """
    if not builder.is_prepared():
        if builder.data_path.exists():
            raise UserError(
                f"{builder.data_path} is there but holds no finished dataset: move it "
                "away and run again"
            )
        return False
    if FORMAT not in builder.info.available_file_formats():
        raise UserError(
            f"{builder.info.full_name} is in {builder.data_path} as "
            f"{builder.info.file_format.value}: make array_record of it by `python -m "
            f"vt_flax.prepare_data convert {name} --data_dir {data_dir_of(builder)}`"
        )
    check_complete(builder)
    return True


def check_complete(
    builder: DatasetBuilder, file_format: FileFormat = FORMAT
) -> list[pathlib.Path]:
    """Returns all files of a dataset's splits.

    Raises:
      UserError: if some are missing.
    """
    files = []
    for name, split in builder.info.splits.items():
        shards = split.get_available_shards(file_format=file_format)
        if len(shards) < split.num_shards:
            raise UserError(
                f"{builder.data_path} lacks {split.num_shards - len(shards)} of the "
                f"{split.num_shards} {file_format.value} files of split {name!r}: "
                "restore them, or move the folder away and run again"
            )
        files += [pathlib.Path(shard) for shard in shards]
    return files


def describe(builder: DatasetBuilder, name: str) -> str:
    """Returns lines that tell what is there and how to train on it.

    Args:
      builder: of a prepared dataset.
      name: by which `open_source` finds it.
    """
    splits = ", ".join(
        f"{name} {split.num_examples:,}" for name, split in builder.info.splits.items()
    )
    size = sum(file.stat().st_size for file in check_complete(builder))
    names = (builder.info.metadata or {}).get(CLASS_NAMES)
    classes = f"{len(names)} classes, " if names else ""
    return (
        f"{builder.info.full_name} in {builder.data_path}: {splits} examples, "
        f"{classes}{decimal(size)} of array_record\n"
        f"use it by --config.data.name={name} "
        f"--config.data.data_dir={data_dir_of(builder)}"
    )


def _check_made_of(builder: DatasetBuilder, manual: epath.Path) -> None:
    """Checks that a prepared dataset of the user's own files is of these ones.

    Raises:
      UserError: if it is of another folder, or its files are others by now.
    """
    known = builder.info.metadata or {}
    source = known.get(MADE_OF)
    if source not in (None, made_of(manual)):
        raise UserError(
            f"{builder.data_path} is made of {source}, not of {manual}: name another "
            "--data_dir, or move that dataset away"
        )
    files = known.get(MADE_OF_FILES)
    if files and (not manual.is_dir() or files != digest_of_files(manual)):
        raise UserError(
            f"{manual} has changed since {builder.data_path} was made of it: move that "
            "dataset away to make it anew, or leave out --manual_dir to keep it"
        )


def _check_ignore_label(builder: DatasetBuilder, ignore_label: str) -> None:
    """Checks that a prepared dataset was made with the wanted meaning of 255.

    Raises:
      UserError: if not.
    """
    used = (builder.info.metadata or {}).get(IGNORE_LABEL, NO_LABEL)
    if ignore_label and ignore_label != used:
        raise UserError(
            f"{builder.data_path} was made with --ignore_label {used}, not "
            f"{ignore_label}: move it away to make it anew"
        )


def _check_manual(builder: DatasetBuilder, manual: epath.Path, named: bool) -> None:
    """Checks the folder of manual files before TFDS would miss it."""
    wanted = " ".join((builder.MANUAL_DOWNLOAD_INSTRUCTIONS or "").split())
    if (named or wanted) and not is_folder(manual):
        raise UserError(
            f"--manual_dir {manual}: there is no such folder"
            + (f"; {builder.name} needs it: {wanted}" if wanted else "")
        )
    if wanted and builder.name != IMAGENET and not any(manual.iterdir()):
        raise UserError(f"--manual_dir {manual} is empty: {wanted}")


def _expected_bytes(builder: DatasetBuilder) -> int | None:
    """Returns what a download and its dataset may take, or None."""
    known = builder.info.download_size + builder.info.dataset_size
    if not known and not builder.builder_configs:
        # TFDS records the size of each download with its checksum, for all the
        # configurations together. What is downloaded, what is extracted from it and
        # the dataset itself are of one order.
        known = 3 * sum(file.size or 0 for file in (builder.url_infos or {}).values())
    return int(known) or None
