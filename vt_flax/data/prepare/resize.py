"""A copy of a prepared TFDS dataset whose images are reduced to a short side."""

import functools
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tqdm import tqdm

from vt_flax.data.masks import decode_mask, encode_png
from vt_flax.data.pillow_decoder import decode_with_pillow
from vt_flax.data.prepare.threads import in_threads
from vt_flax.data.segmentation_sources import RESIZED_FROM, image_features
from vt_flax.errors import UserError

# At 90, 300 photographs reduced to 256 come back at 36 dB and 30 kB; at 95, 38 dB and
# 41 kB, but the copy is there to be fast, and a third of the time goes by the byte.
JPEG_QUALITY = 90
# About 60 MB of photographs at 256: few files, and little memory, which holds one.
SHARD_EXAMPLES = 2048


def shrunk_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Returns the width and height to which an image is reduced; its own if small."""
    short = min(size)
    if short <= side:
        return size
    return tuple(max(side, round(length * side / short)) for length in size)


def shrink(encoded: bytes, side: int) -> bytes:
    """Reduces an encoded image's short side to `side` pixels, bicubic and antialiased.

    JPEGs stay JPEGs, at quality 90 and in RGB; everything else becomes PNG, which loses
    nothing. Images that are no larger stay as they are, to the byte. Raises ValueError
    for a damaged image.
    """
    image = decode_with_pillow(encoded)
    size = shrunk_size(image.size, side)
    if size == image.size:
        return encoded
    form = Image.open(io.BytesIO(encoded)).format
    output = io.BytesIO()
    image.resize(size, Image.Resampling.BICUBIC).save(
        output, "JPEG" if form == "JPEG" else "PNG", quality=JPEG_QUALITY
    )
    return output.getvalue()


def shrink_mask(encoded: bytes, size: tuple[int, int], side: int) -> bytes:
    """Reduces an encoded mask as `shrink` does its image of some width and height.

    Each pixel takes the value of the one that its center lies in: values are never
    mixed. Raises ValueError for a mask that is damaged or of another size.
    """
    values = decode_mask(encoded, palettes=True)
    height, width = values.shape
    if (width, height) != size:
        raise ValueError(
            f"a mask of {width} x {height} pixels, its image has {size[0]} x {size[1]}"
        )
    new_width, new_height = shrunk_size(size, side)
    if (new_width, new_height) == size:
        return encoded
    # In integers: where a center is between two pixels, Pillow takes either.
    y = (2 * np.arange(new_height) + 1) * height // (2 * new_height)
    x = (2 * np.arange(new_width) + 1) * width // (2 * new_width)
    return encode_png(values[np.ix_(y, x)])


class Resized(tfds.core.ShardBasedBuilder, skip_registration=True):
    """The dataset NAME_SIDE: NAME with images of at most that short side.

    Masks are reduced with their images. Every other feature, the splits and the order
    of the examples are the source's, so that a slice such as `train[:90%]` holds the
    same examples in both.
    """

    def __init__(self, source: tfds.core.DatasetBuilder, side: int, data_dir: str):
        """Describes the copy of a prepared dataset in array_record."""
        name = source.info.full_name.rpartition("/")[0].replace("/", "_")
        self.name, self.VERSION = f"{name}_{side}", source.version
        self._source, self._side = source, side
        self._image = (source.info.supervised_keys or ("image",))[0]
        feature = dict(source.info.features).get(self._image)
        if not isinstance(feature, tfds.features.Image):
            raise UserError(
                f"dataset {source.name!r} has no images to resize: its feature "
                f"{self._image!r} is no Image"
            )
        self._masks = [key for key in image_features(source, 1) if key != self._image]
        encoded = (self._image, *self._masks)
        decoders = dict.fromkeys(encoded, tfds.decode.SkipDecoding())
        self._splits = {
            split: source.as_data_source(split, decoders=decoders)
            for split in source.info.splits
        }
        super().__init__(data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        source = self._source.info
        features = dict(source.features)
        image = features[self._image]
        features[self._image] = tfds.features.Image(
            shape=(None, None, image.shape[-1]), encoding_format=image.encoding_format
        )
        for key in self._masks:
            features[key] = _of_any_size(features[key])
        # By it, `KNOWN_CLASSES` are also those of the copy.
        metadata = {RESIZED_FROM: self._source.name} | dict(source.metadata or {})
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{source.full_name} with images of at most {self._side} pixels"
            f" on the short side.\n\n{source.description}",
            features=tfds.features.FeaturesDict(features),
            supervised_keys=source.supervised_keys,
            homepage=source.homepage,
            citation=source.citation,
            metadata=tfds.core.MetadataDict(metadata),
        )

    def _shard_iterators_per_split(self, dl_manager: Any) -> dict[str, list]:
        return {
            split: [
                functools.partial(self._generate, split, first)
                for first in range(0, len(data), SHARD_EXAMPLES)
            ]
            for split, data in self._splits.items()
        }

    def _generate(self, split: str, first: int) -> Iterator[tuple[int, dict]]:
        count = len(self._splits[split])
        indices = range(first, min(first + SHARD_EXAMPLES, count))
        examples = in_threads(functools.partial(self._example, split), indices)
        yield from tqdm(examples, f"Resizing {split}", count, initial=first)

    def _example(self, split: str, i: int) -> tuple[int, dict]:
        """Returns an example with its image and masks reduced and encoded."""
        example = dict(self._splits[split][i])
        encoded, key = example[self._image], self._image
        try:
            example[key] = shrink(encoded, self._side)
            size = Image.open(io.BytesIO(encoded)).size
            for key in self._masks:
                example[key] = shrink_mask(example[key], size, self._side)
        except ValueError as error:
            raise UserError(
                f"{self._source.info.full_name} {split}, example {i}: {key} cannot be "
                f"resized ({error}); build that dataset again"
            ) from error
        return i, example


def _of_any_size(mask: tfds.features.Image) -> tfds.features.Image:
    """Returns a mask's feature for masks of any size."""
    options = {"shape": (None, None, 1), "encoding_format": "png"}
    if isinstance(mask, tfds.features.LabeledImage) and mask.num_classes:
        return tfds.features.LabeledImage(labels=list(mask.names), **options)
    return tfds.features.Image(**options, use_colormap=True)
