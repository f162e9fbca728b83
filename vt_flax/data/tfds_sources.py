"""Splits of TFDS datasets, and those in array_record."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from vt_flax.data.host import tensorflow
from vt_flax.data.orientation import UPRIGHT
from vt_flax.data.source import Example, Records, Source
from vt_flax.data.splits import tfds_slices
from vt_flax.data.storage import UnreachableError, how_to_prepare, storage_errors
from vt_flax.errors import UserError, first_line
from vt_flax.paths import in_bucket

# Part of array_record's error if the network is lost or nobody is logged in.
RETRIES_OVER = "Retry policy exhausted"


def data_dir_of(builder: Any) -> epath.Path:
    """Returns the folder of TFDS datasets in which a builder's dataset is.

    TFDS's own `data_dir_root` is the dataset's folder where it has no code of it.
    """
    # The full name is name/version or name/configuration/version.
    return epath.Path(builder.data_path).parents[builder.info.full_name.count("/")]


def class_features(
    builder: Any, name: str, image_feature: str = "", label_feature: str = ""
) -> tuple[str, str]:
    """Returns the features of a TFDS dataset that hold images and class labels.

    Empty ones are replaced by the dataset's default.

    Raises:
      UserError: if there is no such feature, or it is of another kind.
    """
    import tensorflow_datasets as tfds

    features = builder.info.features
    defaults = _default_features(builder)
    image, label = image_feature or defaults[0], label_feature or defaults[1]
    for option, key, kind in (
        ("image_feature", image, tfds.features.Image),
        ("label_feature", label, tfds.features.ClassLabel),
    ):
        known = sorted(one for one in features if isinstance(features[one], kind))
        if key not in known:
            raise UserError(
                f"dataset {name!r} has no {kind.__name__} feature {key!r} (data."
                f"{option}); it has {', '.join(known) or 'none'}"
            )
    if not features[label].num_classes:
        raise UserError(f"dataset {name!r} has no number of classes for {label!r}")
    return image, label


def _default_features(builder: Any) -> tuple[str, str]:
    return (builder.info.supervised_keys or ("image", "label"))[:2]


def has_random_access(builder: Any) -> bool:
    """Returns whether a prepared TFDS dataset is stored in array_record, or also is."""
    from tensorflow_datasets.core.file_adapters import FileFormat

    stored = builder.info.available_file_formats()
    return bool(stored & FileFormat.with_random_access())


def how_to_convert(builder: Any, name: str) -> str:
    """Returns how to convert a dataset to array_record, for a message."""
    return how_to_prepare(f"convert {name}", data_dir_of(builder))


class TFDSSplit(Source):
    """A split of a TFDS dataset in any format.

    Labels are classes or, if their feature is an image, masks.

    Args:
      builder: of a prepared dataset.
      name: of the dataset, as the user wrote it.
      split: see `sources.open_source`.
      keys: the features that hold image and label.

    Raises:
      UserError: if there is no such split, it is empty, or files of it are missing.
    """

    def __init__(self, builder: Any, name: str, split: str, keys: Sequence[str]):
        import tensorflow_datasets as tfds

        self.name = f"{name} {split}"
        self._builder, self._split, self._keys = builder, split, tuple(keys)
        try:
            self._slices = tfds_slices(split, builder.info.splits)
        except ValueError as error:
            raise UserError(f"split {split!r} of dataset {name!r}: {error}") from error
        if not len(self):
            raise UserError(f"split {split!r} of dataset {name!r} is empty")
        self._files = builder.info.splits[split].file_instructions
        folder = epath.Path(builder.data_path)
        with storage_errors(folder):
            existing = {path.name for path in folder.iterdir()}
        missing = [file for file in self._files if file.basename() not in existing]
        if missing:
            raise UserError(
                f"{missing[0].filename} is missing ({len(missing)} of the "
                f"{len(self._files)} files of split {split!r} are): copy the dataset "
                "again, or move its folder away and prepare it anew"
            )
        label = builder.info.features[keys[1]]
        self._has_masks = isinstance(label, tfds.features.Image)
        if not self._has_masks:
            self.class_names = tuple(label.names)
        # Options for the identity.
        self._choices: dict[str, Any] = {}
        if self._keys != _default_features(builder):
            self._choices["features"] = list(keys)
        if builder.info.disable_shuffling and "[" in split:
            self.notes = (
                f"dataset {name!r} is stored in the order in which it was generated, "
                f"without shuffling: classes may be missing in {split}",
            )

    def __len__(self) -> int:
        """Returns the number of examples."""
        return sum(end - begin for _, begin, end in self._slices)

    def identity(self) -> dict[str, Any]:
        """Returns what distinguishes the split: see `Source.identity`."""
        version = self._builder.info.full_name
        return super().identity() | {"version": version} | self._choices

    def members(self) -> np.ndarray:
        """Returns the examples' indices in all splits together: see `Source`."""
        first, total = {}, 0
        for name, info in self._builder.info.splits.items():
            first[name], total = total, total + info.num_examples
        return np.concatenate(
            [first[name] + np.arange(begin, end) for name, begin, end in self._slices]
        )


class TFDSSource(TFDSSplit):
    """A split of a TFDS dataset in array_record, the format with random access.

    Raises:
      UserError: if it is in another format.
    """

    def __init__(self, builder: Any, name: str, split: str, keys: Sequence[str]):
        if not has_random_access(builder):
            raise UserError(
                f"dataset {name!r} is stored as {builder.info.file_format.value}, "
                f"without random access: {how_to_convert(builder, name)}"
            )
        super().__init__(builder, name, split, keys)
        # Serialized examples.
        self._records = builder.as_data_source(split).data_source
        # array_record's threads hide a network's latency, but slow down a disk.
        self._remote = in_bucket(builder.data_path)

    def read(self, indices: Sequence[int]) -> list[Example]:
        """Returns the examples at some indices: see `Source.read`."""
        examples = []
        for index in indices:
            records, _, _ = self.fetch([index])
            try:
                image, label = self.parse(records[0], 0)
            except tensorflow().errors.OpError as error:
                # Of a file that was truncated, array_record returns empty records.
                raise self._unreadable(index, first_line(error)) from error
            label = label.numpy()
            examples.append(
                Example(image.numpy(), label if self._has_masks else int(label))
            )
        return examples

    def fetch(self, indices: Sequence[int]) -> Records:
        """Returns serialized examples, which `parse` reads, and zeros as classes.

        Images are used as they are stored, as users of TFDS expect: upright by
        definition, whatever their EXIF data say.
        """
        try:
            if self._remote:
                fetched = list(self._records.__getitems__(indices))
            else:
                fetched = [self._records[int(index)] for index in indices]
        except Exception as error:
            raise self._unreadable(indices[0], first_line(error)) from error
        return fetched, [0] * len(fetched), [UPRIGHT] * len(fetched)

    def _unreadable(self, index: int, reason: str) -> UserError:
        """Returns the error for an example that cannot be read, with its file."""
        ends = np.cumsum([file.take for file in self._files])
        file = self._files[np.searchsorted(ends, index, side="right")].filename
        kind = UnreachableError if RETRIES_OVER in reason else UserError
        return kind(
            f"{self.describe(index)}, in {file}: cannot be read ({reason[:200]})"
        )

    def parse(self, record: Any, label: Any) -> tuple[Any, Any]:
        """Returns file and label, scalar tensors, of a serialized example."""
        del label  # The record holds it.
        tf = tensorflow()
        image, label = self._keys
        kinds = {image: tf.string, label: tf.string if self._has_masks else tf.int64}
        features = {key: tf.io.FixedLenFeature((), kinds[key]) for key in self._keys}
        parsed = tf.io.parse_single_example(record, features)
        return parsed[image], parsed[label]
