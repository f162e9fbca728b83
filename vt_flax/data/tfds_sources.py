"""TFDS datasets: by random access in array_record, as a stream in other formats."""

import abc
from collections.abc import Iterable, Sequence
from typing import Any

from etils import epath

from vt_flax.data.host import tensorflow
from vt_flax.data.orientation import UPRIGHT
from vt_flax.data.source import Example, RandomAccessSource, Records, StreamSource
from vt_flax.errors import UserError, first_line


def data_dir_of(builder: Any) -> epath.Path:
    """Returns the folder of TFDS datasets in which a builder's dataset is.

    TFDS's own `data_dir_root` is the dataset's folder where it has no code of it.
    """
    # The full name is name/version or name/configuration/version.
    return epath.Path(builder.data_path).parents[builder.info.full_name.count("/")]


class TFDSRecords(RandomAccessSource):
    """A split of a TFDS dataset in a format with random access: array_record.

    Args:
      builder: a prepared `tfds.core.DatasetBuilder`.
      split: name of the split, or a slice of it.
      keys: the features that hold image and label.
      encoded: features that stay encoded.

    Raises:
      NotImplementedError: if the dataset's format has no random access.
    """

    def __init__(
        self, builder: Any, split: str, keys: Sequence[str], encoded: Iterable[str]
    ):
        import tensorflow_datasets as tfds

        self._keys = tuple(keys)
        self._version = builder.info.full_name
        self._data = builder.as_data_source(
            split, decoders={key: tfds.decode.SkipDecoding() for key in encoded}
        )
        # Threads hide a network's latency; on a disk they cost more than they bring.
        self._remote = "://" in str(builder.data_path)

    @abc.abstractmethod
    def label_feature(self) -> Any:
        """Returns how TensorFlow reads the label of a record."""

    def __len__(self) -> int:
        """Returns the number of examples."""
        return len(self._data)

    def identity(self) -> dict[str, Any]:
        """Returns what makes the split the one it is: see `Source.identity`."""
        return super().identity() | {"version": self._version}

    def read(self, indices: Sequence[int]) -> list[Example]:
        """Returns the examples at some indices, still encoded.

        Raises:
          UserError: for one that cannot be read.
        """
        examples = []
        for index in indices:
            try:
                record = self._data[int(index)]
            except (
                Exception
            ) as error:  # whatever a damaged file makes the library raise
                reason = first_line(error)[:200]
                raise UserError(
                    f"{self.describe(index)}: cannot be read ({reason})"
                ) from error
            image, label = (record[key] for key in self._keys)
            # Of a file that was cut off since it was opened, empty records are read.
            if image is None or label is None:
                raise UserError(f"{self.describe(index)}: cannot be read (it is empty)")
            label = label if isinstance(label, bytes) else int(label)
            examples.append(Example(image, label))
        return examples

    def fetch(self, indices: Sequence[int]) -> Records:
        """Returns serialized examples, which `parse` takes apart, and as many zeros.

        Images are used as they are stored, as users of TFDS expect: upright by
        definition, whatever their EXIF data say.
        """
        records = self._data.data_source
        found = (
            list(records.__getitems__(indices))
            if self._remote
            else [records[index] for index in indices]
        )
        return found, [0] * len(found), [UPRIGHT] * len(found)

    def parse(self, record: Any, label: Any) -> tuple[Any, Any]:
        """Returns file and label, scalar tensors, of a serialized example."""
        del label  # it is in the record
        tf = tensorflow()
        image, label = self._keys
        features = {
            image: tf.io.FixedLenFeature((), tf.string),
            label: self.label_feature(),
        }
        parsed = tf.io.parse_single_example(record, features)
        return parsed[image], parsed[label]


class TFDSSource(TFDSRecords):
    """A split of a TFDS dataset of images and classes; see `TFDSRecords`.

    Args:
      builder: a prepared `tfds.core.DatasetBuilder`.
      name: of the dataset, as the user wrote it.
      split: name of the split, or a slice of it.
      keys: the features that hold image and label.
    """

    def __init__(self, builder: Any, name: str, split: str, keys: Sequence[str]):
        self.name = f"{name} {split}"
        self.class_names = tuple(builder.info.features[keys[1]].names)
        super().__init__(builder, split, keys, keys[:1])

    def label_feature(self) -> Any:
        """Returns how TensorFlow reads the label of a record."""
        tf = tensorflow()
        return tf.io.FixedLenFeature((), tf.int64)


class TFDSStream(StreamSource):
    """A split of a TFDS dataset in a format without random access, such as TFRecord.

    Args:
      builder: a prepared `tfds.core.DatasetBuilder`.
      name: of the dataset, as the user wrote it.
      split: name of the split, or a slice of it.
      keys: the features that hold image and label.
    """

    def __init__(self, builder: Any, name: str, split: str, keys: Sequence[str]):
        self.name = f"{name} {split}"
        self.class_names = tuple(builder.info.features[keys[1]].names)
        self.notes = (
            f"{self.name} is stored as {builder.info.file_format.value}, which is read "
            "as a stream: the order of examples depends on the number of processes, "
            "and after a restart it begins anew. For the exact order, make "
            f"array_record of it: `python -m vt_flax.prepare_data convert {name} "
            f"--data_dir {data_dir_of(builder)}`",
        )
        self._builder, self._split, self._keys = builder, split, keys

    def __len__(self) -> int:
        """Returns the number of examples."""
        return self._builder.info.splits[self._split].num_examples

    def identity(self) -> dict[str, Any]:
        """Returns what makes the split the one it is: see `Source.identity`."""
        return super().identity() | {"version": self._builder.info.full_name}

    def stream(
        self, seed: int | None, part: int, parts: int, buffer: int
    ) -> tuple[Any, int]:
        """Opens a process's share of the split; see `StreamSource.stream`."""
        import tensorflow_datasets as tfds

        share = tfds.even_splits(self._split, parts)[part]
        count = self._builder.info.splits[share].num_examples
        image, label = self._keys
        data = self._builder.as_dataset(
            share,
            shuffle_files=seed is not None,
            decoders={image: tfds.decode.SkipDecoding()},
            read_config=tfds.ReadConfig(
                add_tfds_id=True,
                shuffle_seed=seed,
                try_autocache=False,
                skip_prefetch=True,
            ),
        ).map(lambda example: (example["tfds_id"], example[image], example[label]))
        if seed is not None:
            data = data.shuffle(buffer, seed).repeat()
        return data, count
