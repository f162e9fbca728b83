"""The embedded scenes: determinism and exact masks."""

import functools
import hashlib
import io

import matplotlib.path
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from vt_flax.data.prepare import shapes
from vt_flax.data.prepare.shapes import CLASS_NAMES, SIDE, Placement, scene
from vt_flax.data.sources import prepared_builder

CLASSES = len(CLASS_NAMES)


@functools.cache
def scenes(first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
    images, labels = zip(*map(scene, range(first, last)), strict=True)
    return np.stack(images), np.stack(labels)


def test_scenes_are_those_of_the_published_figures():
    images, labels = scenes(0, 8)
    assert images.shape == (8, SIDE, SIDE, 3) and labels.shape == (8, SIDE, SIDE)
    assert images.dtype == labels.dtype == np.uint8
    digest = hashlib.sha256(labels.tobytes()).hexdigest()
    assert digest.startswith("ffd2a936ae3ff8e2")
    # A sine may round otherwise on another processor.
    assert abs(images.sum(dtype=int) - 11_736_279) < 100


def generator(example: int) -> np.random.Generator:
    """Returns the random numbers with which a scene begins."""
    return np.random.Generator(np.random.Philox(key=[shapes.SEED, example]))


# Masks.


def outlines(name: str) -> list[np.ndarray]:
    """Returns corners, complex numbers, of a shape's outline, and its hole's."""
    circle = np.exp(2j * np.pi * np.arange(2000) / 2000)
    fourth = np.exp(2j * np.pi * np.arange(4) / 4)
    if name == "disc":
        return [circle]
    if name == "ring":
        return [1.15 * circle, 0.5 * circle]
    if name == "square":
        return [0.9 * np.sqrt(2) * fourth * np.exp(0.25j * np.pi)]
    if name == "triangle":
        # Corners are twice as far from the center as sides.
        return [1.4j * np.exp(2j * np.pi * np.arange(3) / 3)]
    quarter = np.asarray([1.2 + 0.4j, 0.4 + 0.4j, 0.4 + 1.2j])
    return [(fourth[:, None] * quarter).ravel()]


def independently_covered(placement: Placement) -> np.ndarray:
    """Returns which pixel centers matplotlib finds in an object's outline."""
    centers = np.arange(SIDE) + 0.5
    points = np.stack(np.meshgrid(centers, centers), -1).reshape(-1, 2)
    covered = np.zeros(len(points), bool)
    for corners in outlines(CLASS_NAMES[placement.label]):
        turned = placement.radius * np.exp(1j * placement.angle) * corners
        turned += placement.x + 1j * placement.y
        path = matplotlib.path.Path(np.stack([turned.real, turned.imag], -1))
        # A hole is what is in both.
        covered ^= path.contains_points(points)
    return covered.reshape(SIDE, SIDE)


@pytest.mark.parametrize("label", range(1, CLASSES))
def test_an_object_covers_the_pixels_whose_centers_are_in_its_outline(label):
    random = np.random.default_rng(label)
    x, y = random.uniform(10, 54, 2)
    placement = Placement(label, x, y, random.uniform(8, 16), random.uniform(0, 6.28))
    covers = placement.covers()
    np.testing.assert_array_equal(covers, independently_covered(placement))
    assert covers.sum() > 100


@pytest.mark.parametrize("example", range(2))
def test_labels_are_the_objects_in_their_order(example):
    placements, _ = shapes.place(generator(example))
    assert 3 <= len(placements) <= 5
    expected = np.zeros((SIDE, SIDE), np.uint8)
    for placement in placements:
        expected[independently_covered(placement)] = placement.label
    np.testing.assert_array_equal(scene(example)[1], expected)


# The dataset.


def test_the_dataset(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "TRAIN_EXAMPLES", 30)
    monkeypatch.setattr(shapes, "TEST_EXAMPLES", 10)
    builder = prepared_builder("shapes", str(tmp_path))
    skip = tfds.decode.SkipDecoding()
    found = {}
    for split, (first, last) in {"train": (0, 30), "test": (30, 40)}.items():
        data = builder.as_data_source(
            split, decoders={"image": skip, "segmentation_label": skip}
        )
        found = {}
        for record in data:
            image, mask = (
                Image.open(io.BytesIO(record[key]))
                for key in ("image", "segmentation_label")
            )
            assert (image.format, image.mode, mask.mode) == ("PNG", "RGB", "L")
            found[np.asarray(image).tobytes()] = np.asarray(mask).tobytes()
        expected = zip(*scenes(first, last), strict=True)
        assert found == {image.tobytes(): mask.tobytes() for image, mask in expected}
    assert builder.info.metadata["class_names"] == list(CLASS_NAMES)
    assert builder.info.features["image"].shape == (SIDE, SIDE, 3)
