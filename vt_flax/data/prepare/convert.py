"""Turns datasets that TFDS stored as TFRecord, or another format, into array_record.

TFDS's own command, `tfds convert_format`, needs Apache Beam, and loses the class names
when it writes to another folder.
"""

import pathlib
import shutil

from etils import epath
from tensorflow_datasets.core import DatasetBuilder, dataset_info
from tensorflow_datasets.core.constants import DATASET_INFO_FILENAME
from tensorflow_datasets.core.file_adapters import ADAPTER_FOR_FORMAT, FileFormat
from tensorflow_datasets.core.utils import py_utils
from tqdm import tqdm

from vt_flax.data.prepare.build import FORMAT
from vt_flax.data.prepare.workspace import (
    errors_in_one_line,
    exclusive,
    remove_leftovers,
    say,
)
from vt_flax.data.sources import prepared_builder, tfds_builder
from vt_flax.data.tfds_sources import data_dir_of
from vt_flax.errors import UserError


def convert(name: str, data_dir: str, out_dir: str = "") -> DatasetBuilder:
    """Adds array_record to a dataset that is stored in another format.

    The files are written one by one, each complete or not at all, and the dataset's
    description last: a run that was stopped goes on with the first missing file.

    Args:
      name: a TFDS dataset, as in `cifar10`.
      data_dir: folder of the TFDS datasets; examples in it are only read.
      out_dir: folder of TFDS datasets for the result; empty to put the new files beside
        the old ones, where the dataset then has both formats.

    Raises:
      UserError: if the dataset is not there or is damaged.
    """
    source = prepared_builder(name, data_dir)
    folder = pathlib.Path(source.data_path)
    out_dir = out_dir or str(data_dir_of(source))
    target = pathlib.Path(out_dir, source.info.full_name)
    if (target / DATASET_INFO_FILENAME).exists():
        done = tfds_builder(name, out_dir)
        if FORMAT in done.info.available_file_formats():
            say(f"{done.info.full_name} has array_record already in {target}")
            return done
    stored = source.info.file_format
    with errors_in_one_line(f"converting {name}"), exclusive(target.parent):
        target.mkdir(exist_ok=True)
        remove_leftovers(target, "*")
        shards = _missing_shards(source, target)
        for file, output, count in tqdm(shards, "Converting files", leave=False):
            with errors_in_one_line(f"converting {file}"):
                _convert_file(file, output, count, stored)
        _write_description(folder, target)
    return tfds_builder(name, out_dir)


def _missing_shards(
    source: DatasetBuilder, target: pathlib.Path
) -> list[tuple[pathlib.Path, pathlib.Path, int]]:
    """Returns each file still to convert, its output, and its number of examples."""
    shards = []
    for split in source.info.splits.values():
        template = split.filename_template
        outputs = template.replace(
            data_dir=epath.Path(target), filetype_suffix=FORMAT.file_suffix
        )
        shards += zip(
            map(pathlib.Path, template.sharded_filepaths(split.num_shards)),
            map(pathlib.Path, outputs.sharded_filepaths(split.num_shards)),
            split.shard_lengths,
            strict=True,
        )
    return [shard for shard in shards if not shard[1].exists()]


def _convert_file(
    file: pathlib.Path, output: pathlib.Path, count: int, stored: FileFormat
) -> None:
    records = ADAPTER_FOR_FORMAT[stored].make_tf_data(file).as_numpy_iterator()
    adapter = ADAPTER_FOR_FORMAT[FORMAT]
    with py_utils.incomplete_file(epath.Path(output)) as unfinished:
        adapter.write_examples(unfinished, enumerate(records))
        written = adapter.num_examples(unfinished)
        if written != count:
            raise UserError(
                f"{file} holds {written} examples, its dataset_info.json says {count}: "
                "it is damaged; get it again"
            )


def _write_description(folder: pathlib.Path, target: pathlib.Path) -> None:
    """Lists the converted files in the dataset's description."""
    proto = dataset_info.read_proto_from_builder_dir(folder)
    if target.samefile(folder):
        proto.alternative_file_formats.append(FORMAT.value)
    else:
        proto.file_format = FORMAT.value
        # The names of classes, the description of features: all but the examples.
        for file in [*folder.glob("*.json"), *folder.glob("*.txt")]:
            if file.name != DATASET_INFO_FILENAME:
                shutil.copyfile(file, target / file.name)
    # A stop must not leave half a description, least of all in the source's place.
    info = epath.Path(target / DATASET_INFO_FILENAME)
    with py_utils.incomplete_file(info) as unfinished:
        unfinished.write_text(dataset_info.get_dataset_info_json(proto))
