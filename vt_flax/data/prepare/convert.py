"""Converts datasets that TFDS stored as TFRecord, or another format, to array_record.

TFDS's own command, `tfds convert_format`, needs Apache Beam, and loses the class names
when it writes to another folder.
"""

import shutil
import sys

from etils import epath
from tensorflow_datasets.core import DatasetBuilder, dataset_info
from tensorflow_datasets.core.constants import DATASET_INFO_FILENAME
from tensorflow_datasets.core.file_adapters import ADAPTER_FOR_FORMAT
from tensorflow_datasets.core.utils import py_utils
from tqdm import tqdm

from vt_flax.data.prepare.build import FORMAT, errors_in_one_line
from vt_flax.data.sources import prepared_builder, tfds_builder
from vt_flax.data.tfds_sources import data_dir_of
from vt_flax.errors import UserError


def convert(name: str, data_dir: str, out_dir: str = "") -> DatasetBuilder:
    """Adds array_record to a dataset of `data_dir` that is stored in another format.

    Each file is complete or missing, and the dataset's description is written last: a
    run that was stopped goes on with the first missing file. Without `out_dir`, the new
    files are beside the old ones, and the dataset has both formats.
    """
    source = prepared_builder(name, data_dir)
    info, folder = source.info, epath.Path(source.data_path)
    if FORMAT in info.available_file_formats():
        print(f"{info.full_name} has array_record already in {folder}", file=sys.stderr)
        return source
    out_dir = out_dir or str(data_dir_of(source))
    target = epath.Path(out_dir) / info.full_name
    with errors_in_one_line(f"converting {name}"):
        target.mkdir(parents=True, exist_ok=True)
        old, new = f".{info.file_format.file_suffix}", f".{FORMAT.file_suffix}"
        for split in info.splits.values():
            shards = zip(split.filepaths, split.shard_lengths, strict=True)
            for file, count in tqdm([*shards], split.name, leave=False):
                output = target / file.name.replace(old, new)
                if not output.exists():
                    with errors_in_one_line(f"converting {file}"):
                        _convert_file(source, file, output, count)
        _write_description(folder, target)
    return tfds_builder(name, out_dir)


def _convert_file(
    source: DatasetBuilder, file: epath.Path, output: epath.Path, count: int
) -> None:
    reader = ADAPTER_FOR_FORMAT[source.info.file_format]
    writer = ADAPTER_FOR_FORMAT[FORMAT]
    with py_utils.incomplete_file(output) as unfinished:
        records = reader.make_tf_data(file).as_numpy_iterator()
        writer.write_examples(unfinished, enumerate(records))
        written = writer.num_examples(unfinished)
        if written != count:
            raise UserError(
                f"{file} holds {written} examples, its dataset_info.json says {count}: "
                "it is damaged; get it again"
            )


def _write_description(folder: epath.Path, target: epath.Path) -> None:
    """Lists the converted files in the dataset's description."""
    proto = dataset_info.read_proto_from_builder_dir(folder)
    if target.resolve() == folder.resolve():
        proto.alternative_file_formats.append(FORMAT.value)
    else:
        proto.file_format = FORMAT.value
        # The names of classes and the description of features.
        for file in [*folder.glob("*.json"), *folder.glob("*.txt")]:
            if file.name != DATASET_INFO_FILENAME:
                shutil.copyfile(file, target / file.name)
    # A stop must not leave half a description in the source's place.
    with py_utils.incomplete_file(target / DATASET_INFO_FILENAME) as unfinished:
        unfinished.write_text(dataset_info.get_dataset_info_json(proto))
