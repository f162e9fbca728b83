"""Images and masks augmented together: aligned, exact, and drawn as configured."""

import functools
import json as jsonlib
import re

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from vt_flax.data.augment import pairs
from vt_flax.parallel.mesh import batch_sharding, make_mesh
from vt_flax.training.config import default_config

pytestmark = pytest.mark.slow

CANVAS, CROP = (40, 48), (24, 32)
# Levels come back as they are.
MEAN, STD = [0.0] * 3, [1 / 255] * 3
JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}


def config(**changes):
    """A small configuration; keys of the section `segmentation`, or data__KEY."""
    result = default_config()
    result.data.update({"mean": MEAN, "std": STD})
    result.segmentation.update({"canvas": list(CANVAS), "crop": list(CROP)})
    for key, value in changes.items():
        section = result.data if key.startswith("data__") else result.segmentation
        section[key.removeprefix("data__")] = value
    return result


def examples(count, seed=0):
    """Masks of blobs, 0 to 3 and holes of 255; images whose red is 60 x class.

    Green and blue are the row and column, in fives.
    """
    rng = np.random.default_rng(seed)
    images = np.zeros((count, *CANVAS, 3), np.uint8)
    labels = np.full((count, *CANVAS), 255, np.uint8)
    sizes = np.stack([rng.integers(20, n + 1, count) for n in CANVAS], 1)
    y, x = np.mgrid[: CANVAS[0], : CANVAS[1]]
    for image, mask, (height, width) in zip(images, labels, sizes, strict=True):
        blobs = rng.choice([0, 1, 2, 3, 255], (5, 6), p=[0.4, 0.2, 0.2, 0.1, 0.1])
        blobs = np.kron(blobs, np.ones((8, 8)))
        mask[:height, :width] = blobs[:height, :width]
        red = np.where(mask == 255, 240, 60 * mask.astype(int))
        picture = np.stack([red, 5 * y, 5 * x], -1)
        image[:height, :width] = picture[:height, :width]
    return images, labels, sizes.astype(np.int32)


@functools.cache
def compiled(json, mirrored):
    """Returns what augments, and draws of the same key: a program a configuration."""
    settings = ConfigDict(jsonlib.loads(json))

    def both(images, labels, sizes, key):
        keys = jax.random.split(key, len(images))
        return (
            *pairs.augment_pairs(images, labels, sizes, settings, key, mirrored),
            pairs.draw(keys, sizes, settings),
        )

    return jax.jit(both)


def run(config, batch, seed=0, mirrored=()):
    """Returns images, labels, and what was drawn for them."""
    apply = compiled(config.to_json(), mirrored)
    return jax.device_get(apply(*batch, jax.random.key(seed)))


def cut(array, start, fill):
    """A crop of a resized array, which may begin before it and end beyond it."""
    out = np.full((*CROP, *array.shape[2:]), fill, array.dtype)
    (top, left), (height, width) = start, array.shape[:2]
    rows = np.arange(max(top, 0), min(top + CROP[0], height))
    columns = np.arange(max(left, 0), min(left + CROP[1], width))
    out[np.ix_(rows - top, columns - left)] = array[np.ix_(rows, columns)]
    return out


def nearest(mask, size):
    """Pillow's rule, exact at ties."""
    places = [
        (2 * np.arange(n) + 1) * old // (2 * n)
        for n, old in zip(size, mask.shape, strict=True)
    ]
    return mask[np.ix_(*places)]


def by_pillow(batch, draw, k, config):
    """Restates the choice of a crop, and both crops of example k."""
    image, mask = (array[k][: batch[2][k, 0], : batch[2][k, 1]] for array in batch[:2])
    size = draw.resized[k]
    image = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)
    image, mask = np.asarray(image), nearest(mask, size)
    for start in draw.starts[k]:
        labels = cut(mask, start, 255)
        counts = np.bincount(labels[labels != 255], minlength=1)
        if 0 < counts.sum() and counts.max() <= (
            config.segmentation.max_class_share * counts.sum()
        ):
            break
    crop = cut(image.astype(int), start, 0), cut(mask, start, 255)
    return tuple(a[:, ::-1] if draw.mirrored[k] else a for a in crop)


@pytest.mark.parametrize("share,short_side", [(0.75, 0), (0.5, 30)])
def test_pairs_are_what_pillow_makes_of_the_same_draw(share, short_side):
    """The whole path: resized, the crop chosen, cut, mirrored."""
    settings = config(max_class_share=share, short_side=short_side)
    batch = examples(32)
    images, labels, draw = run(settings, batch)
    assert images.shape == (32, *CROP, 3) and images.dtype == np.float32
    assert labels.shape == (32, *CROP) and labels.dtype == np.uint8
    assert len({*map(tuple, draw.resized)}) > 25 and 8 < draw.mirrored.sum() < 24
    for k in range(32):
        image, mask = by_pillow(batch, draw, k, settings)
        np.testing.assert_array_equal(labels[k], mask)
        assert np.abs(images[k] - image).max() <= 1.01
    # Some lie within their crops, and some crops within them.
    assert (draw.starts < 0).any() and (draw.starts > 0).any()


def test_pixels_beyond_an_example_are_the_mean_and_have_no_label():
    """Whatever the canvas holds there, also with jittered colors.

    The first example has no pixels, the second no labels.
    """
    settings = config(**JITTER, scale_max=0.6)
    settings.data.update({"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]})
    images, labels, sizes = examples(32)
    labels[labels == 255] = 1
    sizes[0], labels[1] = 0, 255
    images, labels, draw = run(settings, (np.maximum(images, 1), labels, sizes))
    assert np.isfinite(images).all()
    assert not images[0].any() and (labels[:2] == 255).all()
    images, labels, draw = images[2:], labels[2:], jax.tree.map(lambda x: x[2:], draw)
    beyond = labels == 255
    assert beyond.any((1, 2)).all() and not images[beyond].any()
    assert np.abs(images[~beyond]).min(-1).max() > 0
    visible = np.minimum(draw.resized, CROP).prod(1)
    np.testing.assert_array_equal((~beyond).sum((1, 2)), visible)


def test_a_crop_without_labels_is_not_taken():
    labels = np.full((32, *CANVAS), 255, np.uint8)
    labels[:, :, 47] = np.arange(CANVAS[0]) % 2
    batch = examples(32)[0], labels, np.full((32, 2), CANVAS, np.int32)
    settings = config(max_class_share=0.8, scale_min=1.0, scale_max=1.0)
    _, mask, draw = run(settings, batch)
    possible = (draw.starts[..., 1] == 16).any(1)
    assert 0.2 < possible.mean() < 0.8
    np.testing.assert_array_equal((mask != 255).any((1, 2)), possible)


def test_classes_change_sides_in_mirrored_images_alone():
    batch = examples(32)
    _, plain, draw = run(config(), batch)
    _, exchanged, _ = run(config(), batch, mirrored=(0, 2, 1, 3))
    sides = np.arange(256)
    sides[[1, 2]] = 2, 1
    where = draw.mirrored
    assert 8 < where.sum() < 24 and (plain != sides[plain]).any((1, 2))[where].all()
    np.testing.assert_array_equal(exchanged[where], sides[plain[where]])
    np.testing.assert_array_equal(exchanged[~where], plain[~where])


def test_the_result_does_not_depend_on_the_devices(well_compiled):
    """Thirty-two examples on one device, and sharded over eight."""
    settings, batch = config(**JITTER, short_side=30), examples(32)
    images, labels, _ = run(settings, batch)
    sharding = batch_sharding(make_mesh())
    assert len(sharding.device_set) == 8
    arguments = (*jax.device_put(batch, sharding), jax.random.key(0))
    program = compiled(settings.to_json(), ()).lower(*arguments).compile()
    sharded, sharded_labels, _ = jax.device_get(program(*arguments))
    np.testing.assert_array_equal(sharded_labels, labels)
    np.testing.assert_allclose(sharded, images, atol=1e-2)
    # No example leaves its device.
    text = program.as_text()
    assert not re.search("all-gather|all-reduce|all-to-all|collective-permute", text)
    other, other_labels, _ = run(settings, batch, seed=1)
    assert (other_labels != labels).any((1, 2)).all()
    assert (other != images).any((1, 2, 3)).all()
