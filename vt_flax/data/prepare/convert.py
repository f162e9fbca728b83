"""Turns datasets that TFDS stored as TFRecord, or another format, into array_record.

TFDS has a command of its own for this, `tfds convert_format`. It needs Apache Beam even
where it does not use it, loses the class names when it writes to another folder, and
leaves the metadata out when it is stopped after the last file. So its parts are put
together here: TFDS's adapters read and write the files, and its metadata name them.
"""

import pathlib
import shutil
from collections.abc import Iterator

from etils import epath
from tensorflow_datasets.core import DatasetBuilder, dataset_info
from tensorflow_datasets.core.constants import DATASET_INFO_FILENAME
from tensorflow_datasets.core.file_adapters import ADAPTER_FOR_FORMAT, FileFormat
from tensorflow_datasets.core.utils import py_utils
from tqdm import tqdm

from vt_flax.data.prepare.build import FORMAT, check_complete
from vt_flax.data.prepare.workspace import (
    array_record_bytes,
    check_space,
    errors_in_one_line,
    exclusive,
    remove_interrupted_files,
    say,
)
from vt_flax.data.sources import tfds_builder
from vt_flax.data.tfds_sources import data_dir_of
from vt_flax.errors import UserError


def convert(name: str, data_dir: str, out_dir: str = "") -> DatasetBuilder:
    """Adds array_record to a dataset that is stored in another format.

    The files are written one by one, each complete or not at all, and the dataset's
    description last: a run that was stopped goes on with the first missing file.

    Args:
      name: a TFDS dataset, as in `cifar10`.
      data_dir: folder of the TFDS datasets.
      out_dir: folder of TFDS datasets for the result; empty to put the new files beside
        the old ones, where the dataset then has both formats.

    Returns:
      The builder of the dataset in array_record.

    Raises:
      UserError: if the dataset is not there, is damaged or does not fit. Its examples
        are only ever read.
    """
    source = tfds_builder(name, data_dir)
    if not source.is_prepared():
        raise UserError(
            f"dataset {name!r} is not in {source.data_path}: there is nothing to "
            f"convert; `python -m vt_flax.prepare_data {name} --data_dir "
            f"{data_dir_of(source)}` builds it"
        )
    folder = pathlib.Path(source.data_path)
    if not out_dir or pathlib.Path(out_dir).resolve() == data_dir_of(source).resolve():
        out_dir, target = data_dir, folder
    else:
        target = pathlib.Path(out_dir, source.info.full_name)
    if (target / DATASET_INFO_FILENAME).exists():
        done = tfds_builder(name, out_dir)
        if FORMAT in done.info.available_file_formats():
            check_complete(done)
            say(f"{done.info.full_name} has array_record already in {target}")
            return done
    with errors_in_one_line(f"converting {name}"), exclusive(target.parent):
        target.mkdir(exist_ok=True)
        remove_interrupted_files(target)
        shards = _missing_shards(source, target)
        check_space(
            target,
            sum(
                array_record_bytes(file.stat().st_size, count, 1)
                for file, _, count in shards
            ),
        )
        for file, output, count in tqdm(
            shards, desc="Converting", unit=" files", leave=False, mininterval=1
        ):
            with errors_in_one_line(f"converting {file}"):
                _convert_file(file, output, count, source.info.file_format)
        _write_description(folder, target)
    result = tfds_builder(name, out_dir)
    check_complete(result)
    return result


def _missing_shards(
    source: DatasetBuilder, target: pathlib.Path
) -> list[tuple[pathlib.Path, pathlib.Path, int]]:
    """Returns each file still to convert, where to, and its number of examples."""
    check_complete(source, source.info.file_format)
    shards = []
    for split in source.info.splits.values():
        template = split.filename_template.replace(
            data_dir=epath.Path(target), filetype_suffix=FORMAT.file_suffix
        )
        outputs = template.sharded_filepaths(split.num_shards)
        for file, output, count in zip(
            split.filename_template.sharded_filepaths(split.num_shards),
            outputs,
            split.shard_lengths,
            strict=True,
        ):
            if not output.exists():
                shards.append((pathlib.Path(file), pathlib.Path(output), count))
    return shards


def _convert_file(
    file: pathlib.Path, output: pathlib.Path, count: int, file_format: FileFormat
) -> None:
    written = 0

    def examples() -> Iterator[tuple[int, bytes]]:
        nonlocal written
        for record in ADAPTER_FOR_FORMAT[file_format].make_tf_data(file):
            yield written, record.numpy()
            written += 1

    with py_utils.incomplete_file(epath.Path(output)) as unfinished:
        ADAPTER_FOR_FORMAT[FORMAT].write_examples(unfinished, examples())
        if written != count:
            raise UserError(
                f"{file} holds {written} examples, its dataset_info.json says {count}: "
                "it is damaged; get it again"
            )


def _write_description(folder: pathlib.Path, target: pathlib.Path) -> None:
    """Makes the converted files known to TFDS."""
    proto = dataset_info.read_proto_from_builder_dir(folder)
    if target == folder:
        proto.alternative_file_formats.append(FORMAT.value)
    else:
        proto.file_format = FORMAT.value
        # The names of classes, the description of features: all but the examples.
        for pattern in ("*.json", "*.txt"):
            for file in folder.glob(pattern):
                if file.name != DATASET_INFO_FILENAME:
                    shutil.copyfile(file, target / file.name)
    # Through a file of its own: a stop must not leave half a description, least of all
    # in the source's place.
    info = epath.Path(target / DATASET_INFO_FILENAME)
    with py_utils.incomplete_file(info) as unfinished:
        unfinished.write_text(dataset_info.get_dataset_info_json(proto))
