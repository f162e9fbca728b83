"""A copy of a prepared TFDS dataset whose images are brought down to a short side."""

import functools
import io
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tqdm import tqdm

from vt_flax.data import images
from vt_flax.data.mask_classes import mask_features
from vt_flax.data.masks import RESIZED_FROM, decode_mask, encode_mask
from vt_flax.data.prepare.build import FORMAT, check_complete, is_ready
from vt_flax.data.prepare.workspace import (
    array_record_bytes,
    check_space,
    errors_in_one_line,
    exclusive,
    remove_interrupted_build,
    say,
)
from vt_flax.data.threads import ordered_map
from vt_flax.errors import UserError

# At 90, 300 photographs brought to 256 come back at 36 dB and 30 kB; at 95, 38 dB and
# 41 kB, but the copy is there to be fast, and a third of the time goes by the byte.
JPEG_QUALITY = 90
# About 60 MB of photographs at 256: few files, and little memory, which holds one.
SHARD_EXAMPLES = 2048
# Of each split, read before the work begins to tell how large the result will be.
SAMPLE = 100


def shrunk_shape(size: tuple[int, int], side: int) -> tuple[int, int] | None:
    """Returns the size that an image is brought to, or None if it stays as it is."""
    short = min(size)
    if short <= side:
        return None
    return tuple(max(side, round(length * side / short)) for length in size)


def shrink(encoded: bytes, side: int) -> bytes:
    """Brings an encoded image's short side down to `side` pixels.

    Bicubic and antialiased. JPEGs stay JPEGs, at quality 90 and in RGB whatever they
    were in; everything else becomes PNG, which loses nothing. Images that are no larger
    stay as they are, to the byte.

    Raises:
      ValueError: if it is no image, or a damaged one.
    """
    image = images.decode_with_pillow(encoded)
    shape = shrunk_shape(image.size, side)
    if shape is None:
        return encoded
    image = image.resize(shape, Image.Resampling.BICUBIC)
    output = io.BytesIO()
    if Image.open(io.BytesIO(encoded)).format == "JPEG":
        image.save(output, "JPEG", quality=JPEG_QUALITY)
    else:
        image.save(output, "PNG")
    return output.getvalue()


def shrink_mask(
    encoded: bytes, size: tuple[int, int], shape: tuple[int, int] | None
) -> bytes:
    """Brings an encoded mask to what its image was brought to.

    Each pixel takes the value of the one that its centre lies in: values are never
    mixed. A palette PNG's values are its indices.

    Args:
      encoded: an image of one channel, 8 bits.
      size: width and height of its image.
      shape: what they became; None if the image stayed as it was.

    Raises:
      ValueError: if it is no mask, a damaged one, or not of its image's size.
    """
    values = decode_mask(encoded, palettes=True)
    height, width = values.shape
    if (width, height) != size:
        raise ValueError(
            f"a mask of {width} x {height} pixels, its image has {size[0]} x {size[1]}"
        )
    if shape is None:
        return encoded
    # In integers: where a centre is between two pixels, Pillow takes either.
    rows = (2 * np.arange(shape[1]) + 1) * height // (2 * shape[1])
    columns = (2 * np.arange(shape[0]) + 1) * width // (2 * shape[0])
    return encode_mask(values[np.ix_(rows, columns)])


class Resized(tfds.core.ShardBasedBuilder, skip_registration=True):
    """The dataset NAME_SIDE: NAME with images of at most that short side.

    Masks of segmentation are brought to the same size as their images. Every other
    feature, the splits and the order of the examples are the source's, so that a slice
    such as `train[:90%]` holds the same examples in both.
    """

    def __init__(self, source: tfds.core.DatasetBuilder, side: int, data_dir: str):
        """Describes the dataset; `download_and_prepare` makes it.

        Args:
          source: a prepared dataset with images, in array_record.
          side: short side in pixels.
          data_dir: folder of the TFDS datasets.

        Raises:
          UserError: if the source has no images to resize.
        """
        self.name = f"{source.info.full_name.rpartition('/')[0]}_{side}".replace(
            "/", "_"
        )
        self.VERSION = source.version
        self._source = source
        self._side = side
        features = source.info.features
        self._image_key = (source.info.supervised_keys or ("image",))[0]
        if not isinstance(dict(features).get(self._image_key), tfds.features.Image):
            raise UserError(
                f"dataset {source.name!r} has no images to resize: its feature "
                f"{self._image_key!r} is no Image"
            )
        self._mask_keys = [k for k in mask_features(source) if k != self._image_key]
        self._keys = (self._image_key, *self._mask_keys)
        super().__init__(data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        source = self._source.info
        image = source.features[self._image_key]
        resized = tfds.features.Image(
            shape=(None, None, image.shape[-1]), encoding_format=image.encoding_format
        )
        masks = {key: _of_any_size(source.features[key]) for key in self._mask_keys}
        # Else a dataset that is known by its name would not be known again.
        metadata = {RESIZED_FROM: self._source.name} | dict(source.metadata or {})
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{source.full_name} with images of at most {self._side} pixels"
            f" on the short side.\n\n{source.description}",
            features=tfds.features.FeaturesDict(
                dict(source.features) | masks | {self._image_key: resized}
            ),
            supervised_keys=source.supervised_keys,
            homepage=source.homepage,
            citation=source.citation,
            metadata=tfds.core.MetadataDict(metadata),
        )

    def expected_bytes(self) -> int:
        """Returns what the result will take, judged by some examples of each split."""
        total = 0
        for split, data in self._splits().items():
            places = range(0, len(data), max(1, len(data) // SAMPLE))
            shrunk = [self._shrunk(split, data, i) for i in places]
            sizes = [sum(len(example[key]) for key in self._keys) for example in shrunk]
            # A tenth more, for names, labels and the sample's error.
            content = 1.1 * sum(sizes) / len(sizes) * len(data)
            shards = math.ceil(len(data) / SHARD_EXAMPLES)
            total += array_record_bytes(content, len(data), shards)
        return total

    def _splits(self) -> dict[str, Sequence]:
        decoders = {key: tfds.decode.SkipDecoding() for key in self._keys}
        return {
            split: self._source.as_data_source(split, decoders=decoders)
            for split in self._source.info.splits
        }

    def _shard_iterators_per_split(
        self, dl_manager: Any
    ) -> Mapping[str, Sequence[Callable[[], Iterator[tuple[int, dict]]]]]:
        del dl_manager
        return {
            split: [
                functools.partial(
                    self._generate, split, data, first, first + SHARD_EXAMPLES
                )
                for first in range(0, len(data), SHARD_EXAMPLES)
            ]
            for split, data in self._splits().items()
        }

    def _generate(
        self, split: str, data: Sequence, first: int, last: int
    ) -> Iterator[tuple[int, dict]]:
        rows = range(first, min(last, len(data)))
        workers = os.cpu_count() or 1
        examples = ordered_map(
            functools.partial(self._shrunk, split, data), rows, workers, 4 * workers
        )
        with tqdm(
            initial=first,
            total=len(data),
            desc=f"Resizing {split}",
            unit=" images",
            leave=False,
            mininterval=1,
        ) as bar:
            for i, example in zip(rows, examples, strict=True):
                bar.update()
                yield i, example

    def _shrunk(self, split: str, data: Sequence, i: int) -> dict:
        example = data[i]
        place = f"{self._source.info.full_name} {split}, example {i}"
        encoded = example[self._image_key]
        try:
            image = shrink(encoded, self._side)
        except ValueError as error:
            raise UserError(
                f"{place}: not a readable image ({error}); build that dataset again"
            ) from error
        result = example | {self._image_key: image}
        if self._mask_keys:
            size = Image.open(io.BytesIO(encoded)).size
            shape = shrunk_shape(size, self._side)
        for key in self._mask_keys:
            try:
                result[key] = shrink_mask(example[key], size, shape)
            except ValueError as error:
                raise UserError(
                    f"{place}: {key} cannot be resized with its image ({error})"
                ) from error
        return result


def _of_any_size(mask: tfds.features.Image) -> tfds.features.Image:
    """Returns a mask's feature for masks of any size."""
    if isinstance(mask, tfds.features.LabeledImage) and mask.num_classes:
        return tfds.features.LabeledImage(
            labels=list(mask.names), shape=(None, None, 1), encoding_format="png"
        )
    return tfds.features.Image(
        shape=(None, None, 1), encoding_format="png", use_colormap=True
    )


def resize(
    source: tfds.core.DatasetBuilder, side: int, data_dir: str
) -> tfds.core.DatasetBuilder:
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
