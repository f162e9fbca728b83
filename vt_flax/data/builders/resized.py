"""A copy of a prepared TFDS dataset whose images are brought down to a short side."""

import functools
import io
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds
from PIL import Image
from tqdm import tqdm

from vt_flax.data import images
from vt_flax.data.preparation.workspace import array_record_bytes
from vt_flax.data.threads import ordered_map
from vt_flax.errors import UserError

# At 90, 300 photographs brought to 256 come back at 36 dB and 30 kB; at 95, 38 dB and
# 41 kB, but the copy is there to be fast, and a third of the time goes by the byte.
JPEG_QUALITY = 90
# About 60 MB of photographs at 256: few files, and little memory, which holds one.
SHARD_EXAMPLES = 2048
# Of each split, read before the work begins to tell how large the result will be.
SAMPLE = 100


def shrink(encoded: bytes, side: int) -> bytes:
    """Brings an encoded image's short side down to `side` pixels.

    Bicubic and antialiased. JPEGs stay JPEGs, at quality 90 and in RGB whatever they
    were in; everything else becomes PNG, which loses nothing. Images that are no larger
    stay as they are, to the byte.

    Raises:
      ValueError: if it is no image, or a damaged one.
    """
    image = images.decode_with_pillow(encoded)
    short = min(image.size)
    if short <= side:
        return encoded
    shape = tuple(max(side, round(length * side / short)) for length in image.size)
    image = image.resize(shape, Image.Resampling.BICUBIC)
    output = io.BytesIO()
    if Image.open(io.BytesIO(encoded)).format == "JPEG":
        image.save(output, "JPEG", quality=JPEG_QUALITY)
    else:
        image.save(output, "PNG")
    return output.getvalue()


class Resized(tfds.core.ShardBasedBuilder, skip_registration=True):
    """The dataset NAME_SIDE: NAME with images of at most that short side.

    Every other feature, the splits and the order of the examples are the source's, so
    that a slice such as `train[:90%]` holds the same examples in both.
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
        super().__init__(data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        source = self._source.info
        image = source.features[self._image_key]
        resized = tfds.features.Image(
            shape=(None, None, image.shape[-1]), encoding_format=image.encoding_format
        )
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{source.full_name} with images of at most {self._side} pixels"
            f" on the short side.\n\n{source.description}",
            features=tfds.features.FeaturesDict(
                dict(source.features) | {self._image_key: resized}
            ),
            supervised_keys=source.supervised_keys,
            homepage=source.homepage,
            citation=source.citation,
        )

    def expected_bytes(self) -> int:
        """Returns what the result will take, judged by some examples of each split."""
        total = 0
        for split, data in self._splits().items():
            places = range(0, len(data), max(1, len(data) // SAMPLE))
            sizes = [len(self._shrunk(split, data, i)[self._image_key]) for i in places]
            # A tenth more, for names, labels and the sample's error.
            content = 1.1 * sum(sizes) / len(sizes) * len(data)
            shards = math.ceil(len(data) / SHARD_EXAMPLES)
            total += array_record_bytes(content, len(data), shards)
        return total

    def _splits(self) -> dict[str, Sequence]:
        decoders = {self._image_key: tfds.decode.SkipDecoding()}
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
        try:
            image = shrink(example[self._image_key], self._side)
        except ValueError as error:
            raise UserError(
                f"{self._source.info.full_name} {split}, example {i}: not a readable "
                f"image ({error}); build that dataset again"
            ) from error
        return example | {self._image_key: image}
