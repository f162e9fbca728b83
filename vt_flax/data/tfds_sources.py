"""TFDS datasets: by random access in array_record, as a stream in other formats."""

import abc
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from vt_flax.data.host import tensorflow
from vt_flax.data.orientation import UPRIGHT
from vt_flax.data.source import Example, RandomAccessSource, Records, StreamSource
from vt_flax.data.splits import tfds_members
from vt_flax.data.storage import (
    UnreachableError,
    how_to_prepare,
    storage_errors,
)
from vt_flax.errors import UserError, first_line, nearest
from vt_flax.paths import in_bucket

# Part of the error that array_record raises, after a quarter of an hour, if the network
# is lost or nobody is logged in.
RETRIES_OVER = "Retry policy exhausted"


def data_dir_of(builder: Any) -> epath.Path:
    """Returns the folder of TFDS datasets in which a builder's dataset is.

    TFDS's own `data_dir_root` is the dataset's folder where it has no code of it.
    """
    # The full name is name/version or name/configuration/version.
    return epath.Path(builder.data_path).parents[builder.info.full_name.count("/")]


def check_files(info: Any, split: str) -> list[Any]:
    """Checks that all files of a split exist.

    Args:
      info: of a prepared dataset.
      split: name of the split, or a slice of it.

    Returns:
      TFDS's `FileInstruction`s: which examples of which file, in order.

    Raises:
      UserError: if files are missing.
    """
    files = info.splits[split].file_instructions
    with storage_errors(info.data_dir):
        there = {path.name for path in epath.Path(info.data_dir).iterdir()}
    missing = [file.filename for file in files if file.basename() not in there]
    if missing:
        raise UserError(
            f"{missing[0]} is missing ({len(missing)} of the {len(files)} files of "
            f"split {split!r} are): copy the dataset again, or move its folder away "
            "and prepare it anew"
        )
    return files


def class_features(
    builder: Any, name: str, image_feature: str = "", label_feature: str = ""
) -> tuple[str, str]:
    """Returns the features of a TFDS dataset that hold images and class labels.

    Args:
      builder: of the dataset, prepared or not.
      name: of the dataset, as the user wrote it.
      image_feature: the one with the images; empty for the dataset's default.
      label_feature: the one with the labels; empty for the dataset's default.

    Raises:
      UserError: if there is no such feature, or it is of another kind.
    """
    import tensorflow_datasets as tfds

    features = dict(builder.info.features.items())
    keys = []
    for option, asked, default, kind, what in zip(
        ("data.image_feature", "data.label_feature"),
        (image_feature, label_feature),
        _default_features(builder),
        (tfds.features.Image, tfds.features.ClassLabel),
        ("images", "class labels"),
        strict=True,
    ):
        known = sorted(key for key, one in features.items() if isinstance(one, kind))
        listed = f"its features of {what}: {', '.join(known) or 'none'}"
        if asked and asked not in known:
            hint = nearest(asked, known)
            raise UserError(
                f"{option} {asked!r}: dataset {name!r} has no {what} of that name"
                f"{hint if 'did you mean' in hint else ';'} {listed}"
            )
        if not asked and default not in known:
            raise UserError(
                f"dataset {name!r} is not for image classification: its feature "
                f"{default!r} is no {kind.__name__}"
                + (f"; set {option} ({listed})" if known else "")
            )
        keys.append(asked or default)
    if not features[keys[1]].num_classes:
        raise UserError(
            f"dataset {name!r} does not tell the classes of its feature {keys[1]!r}"
        )
    return keys[0], keys[1]


def _default_features(builder: Any) -> tuple[str, str]:
    return (builder.info.supervised_keys or ("image", "label"))[:2]


def _order_notes(builder: Any, name: str, split: str) -> tuple[str, ...]:
    """Returns a note on slices of a dataset that TFDS has not shuffled as it stored it.

    All others are slices of a random order, which have the same mixture of classes.
    """
    if not builder.info.disable_shuffling or "[" not in split:
        return ()
    return (
        f"dataset {name!r} is stored in the order in which it was generated, without "
        f"shuffling: classes may be missing in {split}",
    )


class TFDSRecords(RandomAccessSource):
    """A split of a TFDS dataset in a format with random access: array_record.

    Args:
      builder: a prepared `tfds.core.DatasetBuilder`.
      name: of the dataset, as the user wrote it.
      split: of the dataset, in the syntax of TFDS.
      keys: the features that hold image and label.

    Raises:
      NotImplementedError: if the dataset's format has no random access.
    """

    def __init__(self, builder: Any, name: str, split: str, keys: Sequence[str]):
        import tensorflow_datasets as tfds

        self.name = f"{name} {split}"
        self.notes = _order_notes(builder, name, split)
        self._builder, self._split = builder, split
        self._keys = tuple(keys)
        self._version = builder.info.full_name
        self._data = builder.as_data_source(
            split,
            decoders={
                key: tfds.decode.SkipDecoding()
                for key, feature in builder.info.features.items()
                if isinstance(feature, tfds.features.Image)
            },
        )
        self._files = check_files(builder.info, split)
        # Threads hide a network's latency; on a disk they cost more than they bring.
        self._remote = in_bucket(builder.data_path)

    @abc.abstractmethod
    def label_feature(self) -> Any:
        """Returns how TensorFlow reads the label of a record."""

    def __len__(self) -> int:
        """Returns the number of examples."""
        return len(self._data)

    def identity(self) -> dict[str, Any]:
        """Returns what makes the split the one it is: see `Source.identity`."""
        return super().identity() | {"version": self._version}

    def members(self) -> np.ndarray:
        """Returns a number for each example: see `Source.members`."""
        return tfds_members(self._builder, self._split)

    def read(self, indices: Sequence[int]) -> list[Example]:
        """Returns the examples at some indices, still encoded.

        Raises:
          UserError: for one that cannot be read.
        """
        examples = []
        for index in indices:
            try:
                record = self._data[int(index)]
            # Whatever a damaged file or a network makes the library raise.
            except Exception as error:
                raise self._unreadable(index, error) from error
            image, label = (record[key] for key in self._keys)
            # Of a file that was cut off since it was opened, empty records are read.
            if image is None or label is None:
                raise self._unreadable(index, "it is empty")
            label = label if isinstance(label, bytes) else int(label)
            examples.append(Example(image, label))
        return examples

    def fetch(self, indices: Sequence[int]) -> Records:
        """Returns serialized examples, which `parse` takes apart, and zeros as labels.

        Images are used as they are stored, as users of TFDS expect: upright by
        definition, whatever their EXIF data say.
        """
        records = self._data.data_source
        if self._remote:
            try:
                found = list(records.__getitems__(indices))
            except Exception as error:
                raise self._unreadable(indices[0], error) from error
        else:
            found = [records[index] for index in indices]
        return found, [0] * len(found), [UPRIGHT] * len(found)

    def _unreadable(self, index: int, reason: Exception | str) -> UserError:
        """Returns the error for an example that cannot be read, with its file."""
        reason = reason if isinstance(reason, str) else first_line(reason)
        file, first = "", 0
        for instruction in self._files:
            if first <= index < first + instruction.take:
                file = instruction.filename
            first += instruction.take
        where = f"{self.describe(index)}, in {file}"
        if RETRIES_OVER in reason:
            return UnreachableError(f"{where}: the bucket cannot be read ({reason})")
        return UserError(
            f"{where}: cannot be read ({reason.replace(file, 'it')[:200]})"
        )

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
      split: of the dataset, in the syntax of TFDS.
      keys: the features that hold image and label.
    """

    def __init__(self, builder: Any, name: str, split: str, keys: Sequence[str]):
        self.class_names = tuple(builder.info.features[keys[1]].names)
        super().__init__(builder, name, split, keys)

    def identity(self) -> dict[str, Any]:
        """Returns what makes the split the one it is: see `Source.identity`."""
        return super().identity() | _chosen_features(self._builder, self._keys)

    def label_feature(self) -> Any:
        """Returns how TensorFlow reads the label of a record."""
        tf = tensorflow()
        return tf.io.FixedLenFeature((), tf.int64)


class TFDSStream(StreamSource):
    """A split of a TFDS dataset in a format without random access, such as TFRecord.

    Args:
      builder: a prepared `tfds.core.DatasetBuilder`.
      name: of the dataset, as the user wrote it.
      split: of the dataset, in the syntax of TFDS.
      keys: the features that hold image and label.
    """

    def __init__(self, builder: Any, name: str, split: str, keys: Sequence[str]):
        self.name = f"{name} {split}"
        self.class_names = tuple(builder.info.features[keys[1]].names)
        self.notes = (
            *_order_notes(builder, name, split),
            f"{self.name} is stored as {builder.info.file_format.value}, which is read "
            "as a stream: the order of examples depends on the number of processes, "
            "and after a restart it begins anew. For the exact order, make "
            "array_record of it: "
            f"{how_to_prepare(f'convert {name}', data_dir_of(builder))}",
        )
        check_files(builder.info, split)
        self.place = f"{self.name}, in {builder.data_path}"
        self._builder, self._split, self._keys = builder, split, keys

    def __len__(self) -> int:
        """Returns the number of examples."""
        return self._builder.info.splits[self._split].num_examples

    def identity(self) -> dict[str, Any]:
        """Returns what makes the split the one it is: see `Source.identity`."""
        features = _chosen_features(self._builder, self._keys)
        return super().identity() | {"version": self._builder.info.full_name} | features

    def members(self) -> np.ndarray:
        """Returns a number for each example: see `Source.members`."""
        return tfds_members(self._builder, self._split)

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
            decoders=tfds.decode.PartialDecoding(
                {image: True, label: True}, {image: tfds.decode.SkipDecoding()}
            ),
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


def _chosen_features(builder: Any, keys: Sequence[str]) -> dict[str, Any]:
    """Returns the features for a source's identity, if they are not the default."""
    chosen = tuple(keys) != _default_features(builder)
    return {"features": list(keys)} if chosen else {}
