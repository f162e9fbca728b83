"""Where examples come from: TFDS datasets and class folders, by random access."""

import abc
import contextlib
import dataclasses
import pathlib
import re
import sys
from collections.abc import Sequence

import numpy as np

from vt_flax.errors import UserError, nearest

FOLDER_PREFIX = "folder:"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")
# Datasets that this package makes itself, without a download.
EMBEDDED = ("digits",)


@dataclasses.dataclass(frozen=True)
class Example:
    """One stored example.

    Attributes:
      image: the encoded file, or the decoded array where the dataset stores arrays.
      label: class index from 0.
    """

    image: bytes | np.ndarray
    label: int


class Source(abc.ABC):
    """One split of a classification dataset.

    Attributes:
      name: dataset and split, for messages.
      class_names: a name for each class index.
    """

    name: str
    class_names: Sequence[str]

    @abc.abstractmethod
    def __len__(self) -> int:
        """Returns the number of examples."""

    @abc.abstractmethod
    def read(self, indices: Sequence[int]) -> list[Example]:
        """Returns the examples at some indices, still encoded."""

    def describe(self, index: int) -> str:
        """Names an example in a message."""
        return f"{self.name}, example {index}"


def open_source(name: str, split: str, data_dir: str = "") -> Source:
    """Opens a split of a dataset.

    Args:
      name: a TFDS dataset, as in `cifar10` or `imagenet2012:5.*.*`; or `folder:PATH`.
      split: a split of the dataset; slices as in `train[:90%]`.
      data_dir: folder of the TFDS datasets; empty for TFDS's default.

    Raises:
      UserError: if the dataset, the split or its images are not there, or if it has no
        class labels.
    """
    if name.startswith(FOLDER_PREFIX):
        return FolderSource(pathlib.Path(name[len(FOLDER_PREFIX) :]), split)
    return TFDSSource(name, split, data_dir)


def tfds_builder(name: str, data_dir: str = ""):
    """Returns the builder of a TFDS dataset, prepared or not.

    Args:
      name: a TFDS dataset, as in `cifar10` or `imagenet2012:5.*.*`.
      data_dir: folder of the TFDS datasets; empty for TFDS's default.

    Raises:
      UserError: if TFDS knows no such dataset, version or configuration.
    """
    import tensorflow_datasets as tfds

    from vt_flax.data.builders import digits  # noqa: F401, registers the builder

    where = f" in {data_dir}" if data_dir else ""
    try:
        builder = tfds.builder(name, data_dir=data_dir or None)
    except tfds.core.registered.DatasetNotFoundError:
        known = tfds.list_builders(with_community_datasets=False)
        hint = nearest(name, known) if _resembles(name, known) else ""
        raise UserError(
            f"dataset {name!r} is not known to TFDS, nor prepared{where}"
            f"{hint or '; for images in class folders write folder:PATH'}"
        ) from None
    except (ValueError, AssertionError, OSError) as error:
        raise UserError(f"dataset {name!r}{where}: {_first_line(error)}") from error
    # TFDS reads the formats that a dataset has beside its first one, but forgets them
    # where it has the dataset's code.
    stored = set(builder.info.as_proto.alternative_file_formats)
    for form in stored - {f.value for f in builder.info.alternative_file_formats}:
        builder.info.add_alternative_file_format(form)
    return builder


def data_dir_of(builder) -> pathlib.Path:
    """Returns the folder of TFDS datasets in which a builder's dataset is.

    TFDS's own `data_dir_root` is the dataset's folder where it has no code of it.
    """
    # The full name is name/version or name/configuration/version.
    return pathlib.Path(builder.data_path).parents[builder.info.full_name.count("/")]


class TFDSSource(Source):
    """A split of any TFDS dataset with an image and a class label, in array_record."""

    def __init__(self, name: str, split: str, data_dir: str = ""):
        import tensorflow_datasets as tfds

        builder = tfds_builder(name, data_dir)
        if not builder.is_prepared():
            if builder.name not in EMBEDDED:
                raise UserError(
                    f"dataset {name!r} is not prepared in {builder.data_path}: run "
                    f"`python -m vt_flax.prepare_data {name} --data_dir "
                    f"{data_dir_of(builder)}`, or set data_dir"
                )
            tfds.disable_progress_bar()
            # A command's standard output is its result alone.
            with contextlib.redirect_stdout(sys.stderr):
                builder.download_and_prepare(file_format="array_record")
        if split.partition("[")[0] not in builder.info.splits:
            splits = builder.info.splits
            raise UserError(
                f"dataset {name!r} has no split {split!r}{nearest(split, splits)}"
            )

        features = builder.info.features
        keys = builder.info.supervised_keys or ("image", "label")
        for key, kind in zip(
            keys, (tfds.features.Image, tfds.features.ClassLabel), strict=False
        ):
            if not isinstance(dict(features.items()).get(key), kind):
                raise UserError(
                    f"dataset {name!r} is not for image classification: its feature "
                    f"{key!r} is no {kind.__name__}"
                )
        self._image_key, self._label_key = keys[:2]
        try:
            self._data = builder.as_data_source(
                split, decoders={self._image_key: tfds.decode.SkipDecoding()}
            )
        except NotImplementedError:
            raise UserError(
                f"dataset {name!r} at {builder.data_path} is stored as "
                f"{builder.info.file_format.value}, which has no random access: make "
                "array_record of it by `python -m vt_flax.prepare_data convert "
                f"{name} --data_dir {data_dir_of(builder)}`"
            ) from None
        except ValueError as error:
            raise UserError(
                f"split {split!r} of {name!r}: {_first_line(error)}"
            ) from error
        self.name = f"{name} {split}"
        self.class_names = tuple(features[self._label_key].names)
        if not len(self):
            raise UserError(f"split {split!r} of dataset {name!r} is empty")

    def __len__(self) -> int:
        """Returns the number of examples."""
        return len(self._data)

    def read(self, indices: Sequence[int]) -> list[Example]:
        """Returns the examples at some indices, still encoded."""
        return [
            Example(record[self._image_key], int(record[self._label_key]))
            for record in self._data.__getitems__(list(indices))
        ]


class FolderSource(Source):
    """Images in class folders: `PATH/SPLIT/CLASS/IMAGE`, or `PATH/CLASS/IMAGE`.

    Without split folders the only split is `all`, in a fixed shuffled order, so that
    the slices `all[:80%]` and `all[80%:]` part it into training and test images.
    """

    def __init__(self, path: pathlib.Path, split: str):
        path = path.expanduser()
        if not path.is_dir():
            raise UserError(f"folder:{path}: there is no such folder")
        name, first, last = _parse_split(split)
        folders = _subfolders(path)
        by_split = {folder.name for folder in folders if _subfolders(folder)}
        if by_split:
            if name not in by_split:
                raise UserError(
                    f"folder:{path} has no split {name!r}{nearest(name, by_split)}"
                )
            root = path / name
        elif name == "all":
            root = path
        else:
            raise UserError(
                f"folder:{path} has no split folders, so its only split is 'all': "
                f"write 'all', or a slice such as 'all[:80%]', instead of {split!r}"
            )
        classes = _subfolders(root)
        files = [
            (file, label)
            for label, folder in enumerate(classes)
            for file in sorted(folder.iterdir())
            if file.suffix.lower() in IMAGE_SUFFIXES and file.name[0] != "."
        ]
        if not files:
            raise UserError(
                f"no images in {root}: expected class folders with files "
                f"{', '.join(IMAGE_SUFFIXES)}"
            )
        if name == "all" and not by_split:
            order = np.random.Generator(np.random.Philox(key=0)).permutation(len(files))
            files = [files[i] for i in order]
        files = files[_bound(first, len(files), 0) : _bound(last, len(files), None)]
        if not files:
            raise UserError(f"split {split!r} of folder:{path} is empty")
        self.name = f"folder:{path} {split}"
        self.class_names = tuple(folder.name for folder in classes)
        self._files = files

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self._files)

    def read(self, indices: Sequence[int]) -> list[Example]:
        """Returns the examples at some indices, still encoded."""
        examples = []
        for i in indices:
            file, label = self._files[i]
            try:
                examples.append(Example(file.read_bytes(), label))
            except OSError as error:
                raise UserError(f"{file}: {error.strerror or error}") from error
        return examples

    def describe(self, index: int) -> str:
        """Names an image by its file."""
        return str(self._files[index][0])


def _subfolders(path: pathlib.Path) -> list[pathlib.Path]:
    return sorted(
        entry for entry in path.iterdir() if entry.is_dir() and entry.name[0] != "."
    )


def _parse_split(split: str) -> tuple[str, str, str]:
    """Splits `name[a:b]`, with bounds such as `80%` or `1000`, into its parts."""
    match = re.fullmatch(r"([^\[\]]+)(?:\[(\d+%?)?:(\d+%?)?\])?", split)
    if not match:
        raise UserError(f"split {split!r}: write a name, or a slice as in 'all[:80%]'")
    name, first, last = match.groups()
    return name, first or "", last or ""


def _bound(text: str, count: int, default: int | None) -> int | None:
    if not text:
        return default
    return round(count * int(text[:-1]) / 100) if text[-1] == "%" else int(text)


def _resembles(name: str, known: Sequence[str]) -> bool:
    return "did you mean" in nearest(name, known)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
