"""Resampling by matrices against Pillow, PyTorch and the rule in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vt_flax.data.augment.resampling import (
    linear_weights,
    map_weights,
    nearest_weights,
    resample,
    resized_size,
    select,
)

CANVAS = (61, 75)
# Sizes of sources in the canvas, and what they become: odd, both ways, and either way.
SIZES = [
    ((61, 75), (61, 75)),
    ((61, 75), (30, 37)),
    ((60, 75), (20, 25)),
    ((33, 47), (71, 95)),
    ((47, 33), (45, 70)),
    ((13, 75), (70, 11)),
    ((59, 61), (7, 5)),
    ((40, 40), (80, 80)),
    ((2, 3), (17, 64)),
    ((1, 1), (5, 3)),
    ((5, 61), (1, 1)),
]
OUT = (80, 95)

LINEAR = jax.jit(linear_weights, static_argnames=("length", "extent", "antialias"))
MAP = jax.jit(map_weights, static_argnames=("length", "cells", "extent"))


@jax.jit
def resize(images, labels, sizes, resized):
    """Resizes all examples by the weights of both kinds, from their corners."""

    def both(weights, **options):
        start = jnp.zeros(len(sizes), int)
        return [
            weights(start, resized[:, i], sizes[:, i], OUT[i], CANVAS[i], **options)
            for i in range(2)
        ]

    image = resample(images, *both(linear_weights, antialias=True))
    return image, select(labels, *both(nearest_weights))


def in_canvas(arrays, size=CANVAS, fill=0):
    """Puts arrays of any sizes in the corners of a batch of one."""
    batch = np.full((len(arrays), *size, *arrays[0].shape[2:]), fill, np.uint8)
    for whole, array in zip(batch, arrays, strict=True):
        whole[: array.shape[0], : array.shape[1]] = array
    return batch


def pillow(image, size, resample=Image.Resampling.BILINEAR):
    return np.asarray(Image.fromarray(image).resize(size[::-1], resample))


def test_images_are_what_pillow_makes():
    """Noise, and masks of few classes with holes; pixels beyond do not count."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size, _ in SIZES]
    labels = [
        rng.choice([0, 7, 128, 254, 255], size).astype(np.uint8) for size, _ in SIZES
    ]
    sizes, targets = np.asarray(SIZES, np.int32).swapaxes(0, 1)
    found = resize(
        in_canvas(images, fill=200), in_canvas(labels, fill=3), sizes, targets
    )
    for image, (height, width), out, mask in zip(images, targets, *found, strict=True):
        expected = pillow(image, (height, width))
        # Pillow rounds after each axis.
        assert np.abs(out[:height, :width] - expected).max() <= 1.01
        assert not out[height:].any() and not out[:, width:].any()
        assert (mask[height:] == 255).all() and (mask[:, width:] == 255).all()


def test_nearest_pixels_are_exact_in_whole_numbers():
    """For every pair of lengths up to 40, ties and all."""
    size, resized = (a.ravel() for a in np.mgrid[1:41, 1:41])
    place = jnp.zeros_like(size)
    nearest = jax.jit(functools.partial(nearest_weights, length=40, extent=40))
    weights = nearest(place, resized, size)
    for a, b, found in zip(size, resized, np.asarray(weights), strict=True):
        expected = (2 * np.arange(b) + 1) * a // (2 * b)
        np.testing.assert_array_equal(found[:b].argmax(1), expected)
        np.testing.assert_array_equal(found.sum(1), np.arange(40) < b)


def bilinear(length, size, resized, start, antialias, dtype=np.float64):
    """The rule, pixel by pixel: weights of the source, (length, size)."""
    weights = np.zeros((length, size), dtype)
    widen = max(size / resized, 1) if antialias else 1
    for i in range(length):
        if 0 <= i + start < resized:
            middle = (i + start + 0.5) * size / resized
            for j in range(size):
                weights[i, j] = max(0, 1 - abs(j + 0.5 - middle) / widen)
            weights[i] /= weights[i].sum()
    return weights


@pytest.mark.parametrize("antialias", [False, True])
def test_weights_in_float64(antialias):
    """Long axes as well, of which float32 would not hold the places."""
    cases = [
        *((31, 17, 0), (17, 31, -5), (31, 31, 4), (3000, 1733, 900), (2999, 5000, 4980))
    ]
    for size, resized, start in cases:
        found = LINEAR(
            *(jnp.int32(start), jnp.int32(resized), jnp.int32(size), 40, 3000),
            antialias=antialias,
        )
        expected = bilinear(40, size, resized, start, antialias)
        np.testing.assert_allclose(found[:, :size], expected, atol=1e-6)
        assert not np.asarray(found[:, size:]).any()


def test_masks_are_exact_in_bfloat16():
    """All 256 values, picked by the one pass that TPUs take."""
    labels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    same = np.eye(16, dtype=np.float32)[None]
    with jax.default_matmul_precision("bfloat16"):
        found = select(labels, same, same[:, ::-1])
    np.testing.assert_array_equal(found, labels[:, :, ::-1])
    assert float(jnp.asarray(255, jnp.bfloat16)) == 255


def test_resized_sizes_are_those_of_pillow():
    sizes = np.asarray([1, 2, 5, 7, 100, 333, 500, 2000], np.int32)
    for scale in (0.001, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0):
        found = resized_size(jnp.asarray(sizes), jnp.float32(scale))
        expected = [max(round(int(size) * scale), 1) for size in sizes]
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("mirrored", [False, True])
def test_part_of_a_map_in_float64(mirrored):
    """An example that fills part of the input, of another size than its own."""
    cells, extent, length = 9, 35, 50
    for own, valid in ((50, 35), (31, 22), (20, 34), (1, 1), (47, 3)):
        expected = np.zeros((length, cells))
        for i in range(own):
            place = (i + 0.5) * valid / own
            if mirrored:
                place = valid - place
            place = np.clip(place * cells / extent - 0.5, 0, cells - 1)
            for j in range(cells):
                expected[i, j] = max(0, 1 - abs(j - place))
        found = MAP(
            *(jnp.int32(own), jnp.int32(valid), length, cells, extent),
            mirrored=mirrored,
        )
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_index_stays_within_31_bits():
    """A strip that is enlarged beyond all measure."""
    size = jnp.asarray([4000, 2])
    resized = resized_size(size, 400.0)
    assert int(resized[1]) == 800 and int(resized[0]) * 2 * 4000 < 2**31
    weights = nearest_weights(resized - 3, resized, size, 3, 4000)
    np.testing.assert_array_equal(weights.argmax(-1), [[3999] * 3, [1] * 3])
