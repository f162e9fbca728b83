"""Resized copies of datasets: pixels against jax.image, labels, order, stops."""

import io
import math
from fractions import Fraction

import jax
import numpy as np
import pytest
from image_files import encode
from pair_trees import draw_image, draw_labels, stored, write
from PIL import Image

from vt_flax.data.pillow_decoder import decode_with_pillow
from vt_flax.data.prepare import build
from vt_flax.data.prepare import resize as resized
from vt_flax.data.prepare.build import resize
from vt_flax.data.prepare.resize import shrink
from vt_flax.data.segmentation_sources import TFDSPairs
from vt_flax.data.sources import open_source, tfds_builder
from vt_flax.errors import UserError

SIDE = 120


@pytest.fixture(scope="module")
def copy(prepared_imagenet, tmp_path_factory) -> str:
    """A folder with imagenet2012_120."""
    folder = str(tmp_path_factory.mktemp("resized"))
    resize(tfds_builder("imagenet2012", prepared_imagenet), SIDE, folder)
    return folder


def independently_resized(image: Image.Image, shape: tuple[int, int]) -> np.ndarray:
    """Returns an image brought to (width, height) by JAX's antialiased cubic kernel."""
    # Keys' cubic with a = -1/2, widened by the scale, as in Pillow.
    array = np.asarray(image.convert("RGB"), np.float32)
    result = jax.image.resize(array, (shape[1], shape[0], 3), "cubic", antialias=True)
    return np.clip(np.asarray(result), 0, 255)


@pytest.mark.parametrize("split, count", [("train", 30), ("validation", 16)])
def test_images_labels_and_order(prepared_imagenet, copy, split, count):
    whole = open_source("imagenet2012", split, prepared_imagenet)
    small = open_source(f"imagenet2012_{SIDE}", split, copy)
    assert len(whole) == len(small) == count
    assert whole.class_names == small.class_names
    pairs = zip(whole.read(range(count)), small.read(range(count)), strict=True)
    kept = 0
    for i, (before, after) in enumerate(pairs):
        assert before.label == after.label
        large = Image.open(io.BytesIO(before.image))
        image = Image.open(io.BytesIO(after.image))
        if min(large.size) <= SIDE:
            assert before.image == after.image
            kept += 1
            continue
        assert (image.format, image.mode) == ("JPEG", "RGB")
        assert min(image.size) == SIDE
        ratio = max(large.size) / min(large.size)
        assert abs(max(image.size) - SIDE * ratio) <= 0.5
        if i % 5:  # JAX compiles for every size.
            continue
        expected = independently_resized(large, image.size)
        error = np.asarray(image, np.float64) - expected
        # What JPEG loses; nearest neighbor or no antialiasing lose 4 times as much.
        assert 10 * np.log10(255**2 / np.mean(error**2)) > 30
        assert abs(error.mean()) < 0.5
    assert kept < count


def test_several_files_and_the_same_result_after_a_stop(
    prepared_imagenet, copy, tmp_path, monkeypatch
):
    monkeypatch.setattr(resized, "SHARD_EXAMPLES", 7)
    source = tfds_builder("imagenet2012", prepared_imagenet)
    stopping = [20]

    def stop(encoded, side):
        stopping[0] -= 1
        if stopping[0] == 0:
            raise KeyboardInterrupt
        return shrink(encoded, side)

    monkeypatch.setattr(resized, "shrink", stop)
    with pytest.raises(KeyboardInterrupt):
        resize(source, SIDE, str(tmp_path))
    folder = tmp_path / f"imagenet2012_{SIDE}"
    assert not list(folder.iterdir())

    monkeypatch.setattr(resized, "shrink", shrink)
    resize(source, SIDE, str(tmp_path))
    files = sorted(file.name for file in (folder / "5.1.0").glob("*array_record*"))
    assert len(files) == 5 + 3
    for split in ("train", "validation"):
        one = open_source(f"imagenet2012_{SIDE}", split, copy)
        several = open_source(f"imagenet2012_{SIDE}", split, str(tmp_path))
        indices = range(len(one))
        assert one.read(indices) == several.read(indices)


def test_png_stays_png(digits, tmp_path):
    source = tfds_builder("digits", digits)
    builder = resize(source, 20, str(tmp_path))
    for split in ("train", "test"):
        before = open_source("digits", split, digits).read(range(9))
        after = open_source("digits_20", split, str(tmp_path)).read(range(9))
        for one, other in zip(before, after, strict=True):
            assert one.label == other.label
            image = Image.open(io.BytesIO(other.image))
            assert (image.format, image.size) == ("PNG", (20, 20))
            expected = independently_resized(decode_with_pillow(one.image), (20, 20))
            # Pillow rounds after each of its two passes.
            assert np.abs(np.asarray(image, np.float64) - expected).max() < 2.5
    assert len(open_source("digits_20", "train", str(tmp_path))) == 1437
    assert builder.info.features["image"].encoding_format == "png"


def test_a_cmyk_image_becomes_rgb():
    gradient = np.linspace(0, 255, 60 * 40 * 3).reshape(60, 40, 3).astype(np.uint8)
    encoded = encode(Image.fromarray(gradient).convert("CMYK"), "JPEG")
    assert shrink(encoded, 40) == shrink(encoded, 99) == encoded
    image = Image.open(io.BytesIO(shrink(encoded, 20)))
    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (20, 30))
    expected = independently_resized(Image.open(io.BytesIO(encoded)), (20, 30))
    assert np.abs(np.asarray(image, np.float64) - expected).mean() < 4


def test_a_damaged_image_is_named(prepared_imagenet, tmp_path, monkeypatch):
    def damaged(encoded):
        raise ValueError("image file is truncated")

    monkeypatch.setattr(resized, "decode_with_pillow", damaged)
    source = tfds_builder("imagenet2012", prepared_imagenet)
    with pytest.raises(UserError, match="5.1.0 train, example 0: .* truncated"):
        resize(source, SIDE, str(tmp_path))


def prepare_pairs(folder):
    """Prepares pairs of five sizes and returns the labels by image."""
    expected = {}
    sizes = [(60, 40), (40, 61), (30, 30), (31, 90), (29, 29)]
    for i, (width, height) in enumerate(sizes):
        image = write(folder / "images" / f"{i}.png", draw_image(i, width, height))
        labels = draw_labels(i, width, height, [0, 1, 2, 3, 255])
        write(folder / "masks" / f"{i}.png", labels)
        expected[image] = labels
    (folder / "classes.txt").write_text("a\nb\nc\nd\n")
    build.prepare("image_mask_folder", str(folder / "data"), str(folder))
    return expected


def nearest(labels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Returns the label in which the center of each new pixel lies."""
    rows, columns = (
        [math.floor(Fraction(2 * i + 1, 2) * old / new) for i in range(new)]
        for old, new in zip(labels.shape, shape, strict=True)
    )
    return labels[np.ix_(rows, columns)]


def test_masks_are_resized_with_their_images(tmp_path):
    expected = prepare_pairs(tmp_path)
    data = str(tmp_path / "data")
    builder = resize(tfds_builder("image_mask_folder", data), 30, data)
    found = stored("image_mask_folder_30", data, "train")
    images = {shrink(image, 30): labels for image, labels in expected.items()}
    assert found.keys() == images.keys()
    for image, labels in images.items():
        width, height = Image.open(io.BytesIO(image)).size
        assert min(width, height) == min(30, *labels.shape)
        np.testing.assert_array_equal(found[image], nearest(labels, (height, width)))
    assert builder.info.metadata["class_names"] == ["a", "b", "c", "d"]
    source = TFDSPairs(
        tfds_builder("image_mask_folder_30", data), "image_mask_folder_30", "train"
    )
    assert source.class_names == ("a", "b", "c", "d") and len(source) == 5
