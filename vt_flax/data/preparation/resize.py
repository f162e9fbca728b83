"""Makes the resized copy of a dataset."""

import pathlib

from tensorflow_datasets.core import DatasetBuilder

from vt_flax.data.builders.resized import Resized
from vt_flax.data.preparation.build import FORMAT, check_complete, is_ready
from vt_flax.data.preparation.workspace import (
    check_space,
    errors_in_one_line,
    exclusive,
    remove_interrupted_build,
    say,
)


def resize(source: DatasetBuilder, side: int, data_dir: str) -> DatasetBuilder:
    """Makes a copy of a prepared dataset with images of at most a short side.

    Args:
      source: the prepared dataset, in array_record.
      side: short side in pixels.
      data_dir: folder of the TFDS datasets, for the copy.

    Returns:
      The builder of the copy, which is called NAME_SIDE.

    Raises:
      UserError: if it cannot be made.
    """
    builder = Resized(source, side, data_dir)
    data_path = pathlib.Path(builder.data_path)
    if is_ready(builder, builder.name):
        say(f"{builder.info.full_name} is already prepared in {data_path}")
        return builder
    with exclusive(data_path.parent):
        remove_interrupted_build(data_path)
        with errors_in_one_line(f"building {builder.info.full_name}"):
            check_space(data_path.parent, builder.expected_bytes())
            builder.download_and_prepare(file_format=FORMAT)
    check_complete(builder)
    return builder
