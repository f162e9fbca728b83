"""Small folders of images and masks, and what was prepared of them."""

import io
import pathlib
from collections.abc import Sequence

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from vt_flax.data.sources import tfds_builder

# Any palette: what counts is the index.
PALETTE = np.random.default_rng(0).integers(0, 256, 768).tolist()
SPLITS = {"train": 5, "validation": 3}


def draw_image(seed: int, width: int, height: int) -> Image.Image:
    """Returns a picture that no other seed has."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR)


def draw_labels(
    seed: int, width: int, height: int, values: Sequence[int]
) -> np.ndarray:
    """Returns blocks of random values (height, width), uint8; all values occur."""
    random = np.random.default_rng(seed)
    labels = random.choice(np.asarray(values, np.uint8), (height, width))
    blocks = labels.repeat(3, 0).repeat(3, 1)[:height, :width]
    blocks.ravel()[: len(values)] = values
    return blocks


def write(path: pathlib.Path, content: Image.Image | np.ndarray, **options) -> bytes:
    """Writes an image, or an array as a grey one, and returns the file's bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = content if isinstance(content, Image.Image) else Image.fromarray(content)
    image.save(path, **options)
    return path.read_bytes()


def with_palette(labels: np.ndarray) -> Image.Image:
    """Returns a palette image whose indices are the labels."""
    image = Image.fromarray(labels)
    image.putpalette(PALETTE)
    assert image.mode == "P"
    return image


def stored(name: str, data_dir: str, split: str) -> dict[bytes, np.ndarray]:
    """Returns the labels of a prepared split by the bytes of their image.

    Checks that masks are 8-bit gray PNGs.
    """
    skip = tfds.decode.SkipDecoding()
    data = tfds_builder(name, data_dir).as_data_source(
        split, decoders={"image": skip, "segmentation_label": skip}
    )
    result = {}
    for record in data:
        mask = Image.open(io.BytesIO(record["segmentation_label"]))
        assert (mask.format, mask.mode) == ("PNG", "L")
        # Bit depth and colour type (PNG specification, IHDR).
        assert record["segmentation_label"][24:26] == b"\x08\x00"
        result[record["image"]] = np.asarray(mask)
    return result


def assert_same(
    found: dict[bytes, np.ndarray], expected: dict[bytes, np.ndarray]
) -> None:
    """Compares images to the byte and labels to the pixel."""
    assert found.keys() == expected.keys()
    for image, labels in expected.items():
        np.testing.assert_array_equal(found[image], labels)


def make_lip(root: pathlib.Path) -> dict[str, dict[bytes, np.ndarray]]:
    """Writes LIP's folders; returns each split's labels by the image's file."""
    expected = {split: {} for split in SPLITS}
    for split, count in SPLITS.items():
        short = {"train": "train", "validation": "val"}[split]
        for i in range(count):
            name = f"{i}_{1000 + i}"
            file = root / f"TrainVal_images/{short}_images/{name}.jpg"
            image = write(file, draw_image(10 * count + i, 20, 45))
            labels = draw_labels(i, 20, 45, [*range(20), 255] if i else [0, 14, 15])
            folder = root / "TrainVal_parsing_annotations" / f"{short}_segmentations"
            write(folder / f"{name}.png", with_palette(labels) if i % 2 else labels)
            expected[split][image] = labels
    return expected
