"""The embedded scenes: determinism, exact masks, what distinguishes classes."""

import functools
import hashlib
import io

import matplotlib.path
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures

from vt_flax.data.prepare import shapes
from vt_flax.data.prepare.shapes import CLASS_NAMES, SIDE, Placement, scene
from vt_flax.data.sources import prepared_builder

CLASSES = len(CLASS_NAMES)


@functools.cache
def scenes(first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
    images, labels = zip(*map(scene, range(first, last)), strict=True)
    return np.stack(images), np.stack(labels)


def mean_iou(labels: np.ndarray, predictions: np.ndarray) -> float:
    ratios = []
    for i in range(CLASSES):
        either = (labels == i) | (predictions == i)
        ratios.append(((labels == i) & (predictions == i)).sum() / either.sum())
    return float(np.mean(ratios))


def test_a_scene_is_the_same_each_time_and_like_no_other():
    images, labels = scenes(0, 40)
    for i in (39, 0):
        image, mask = scene(i)
        np.testing.assert_array_equal(image, images[i])
        np.testing.assert_array_equal(mask, labels[i])
    assert len({image.tobytes() for image in images}) == 40
    assert len({mask.tobytes() for mask in labels}) == 40
    assert images.shape == (40, SIDE, SIDE, 3) and labels.shape == (40, SIDE, SIDE)
    assert images.dtype == labels.dtype == np.uint8


def test_scenes_are_those_of_the_published_figures():
    images, labels = scenes(0, 8)
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
@pytest.mark.parametrize("seed", range(2))
def test_an_object_covers_the_pixels_whose_centers_are_in_its_outline(label, seed):
    random = np.random.default_rng(seed)
    x, y = random.uniform(10, 54, 2)
    placement = Placement(label, x, y, random.uniform(8, 16), random.uniform(0, 6.28))
    covers = placement.covers()
    np.testing.assert_array_equal(covers, independently_covered(placement))
    assert covers.sum() > 100


@pytest.mark.parametrize("example", range(4))
def test_labels_are_the_objects_in_their_order(example):
    placements, _ = shapes.place(generator(example))
    assert 3 <= len(placements) <= 5
    expected = np.zeros((SIDE, SIDE), np.uint8)
    for placement in placements:
        expected[independently_covered(placement)] = placement.label
    np.testing.assert_array_equal(scene(example)[1], expected)


def test_objects_cover_each_other_in_part_only():
    covered = 0
    for example in range(40):
        placements, labels = shapes.place(generator(example))
        for i, placement in enumerate(placements):
            full = placement.covers()
            later = [other.covers() for other in placements[i + 1 :]]
            seen = full & ~np.any([np.zeros_like(full), *later], axis=0)
            assert seen.sum() >= 0.7 * full.sum()
            assert (labels[seen] == placement.label).all()
            covered += seen.sum() < full.sum()
    assert covered > 30


def test_classes_are_balanced():
    fractions = np.bincount(scenes(0, 300)[1].ravel(), minlength=CLASSES) / (
        300 * SIDE**2
    )
    assert 0.45 < fractions[0] < 0.65
    objects = fractions[1:] / fractions[1:].mean()
    assert objects.min() > 0.8 and objects.max() < 1.2


# Shapes distinguish the classes, colors do not.


@pytest.mark.parametrize("degree, balance", [(1, None), (2, "balanced")])
def test_colors_do_not_distinguish_the_classes(degree, balance):
    images, labels = scenes(0, 300)
    test_images, test_labels = scenes(1500, 1540)
    pixels = np.random.default_rng(0).permutation(labels.size)[:10_000]
    # Red, green, blue; at degree 2 also their squares and products.
    model = make_pipeline(
        PolynomialFeatures(degree, include_bias=False),
        LogisticRegression(class_weight=balance, max_iter=300),
    )
    model.fit(images.reshape(-1, 3)[pixels] / 255, labels.ravel()[pixels])
    predicted = model.predict(test_images.reshape(-1, 3) / 255)
    background = mean_iou(test_labels, np.zeros_like(test_labels))
    assert 0.07 < background < 0.11
    assert mean_iou(test_labels.ravel(), predicted) < background + 0.04


def profile(covers: np.ndarray) -> np.ndarray:
    """Returns a description of a shape that no turn and no scale changes.

    It is the fraction of each ring around the middle that is covered.
    """
    y, x = np.nonzero(covers)
    middle = x.mean(), y.mean()
    points = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), -1) - middle
    radius = np.hypot(*np.moveaxis(points, -1, 0))
    rings = np.minimum(radius / radius[covers].max() * 8, 8).astype(int).ravel()
    count = np.bincount(rings, minlength=9)
    return (np.bincount(rings, covers.ravel(), 9) / np.maximum(count, 1))[:8]


def test_shapes_distinguish_the_classes():
    random = np.random.default_rng(0)
    labels = random.integers(1, CLASSES, 600)
    features = [
        profile(
            Placement(
                label,
                *random.uniform(26, 38, 2),
                random.uniform(shapes.LEAST_RADIUS, shapes.MOST_RADIUS),
                random.uniform(0, 6.28),
            ).covers()
        )
        for label in labels
    ]
    model = KNeighborsClassifier(5).fit(features[:300], labels[:300])
    assert model.score(features[300:], labels[300:]) > 0.97


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
