"""Color jitter against Pillow's ImageEnhance and colorsys."""

import colorsys
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance
from test_pairs import JITTER, config

from vt_flax.data.augment.jitter import Jitter, apply_jitter

# Of images of 50 x 64.
PIECE = (slice(3, 45), slice(2, 61))


@functools.cache
def jitter_of(names):
    settings = config(**dict.fromkeys(names, 0.1)).segmentation
    return jax.jit(lambda x, inside, values: apply_jitter(x, inside, values, settings))


def jittered(images, **values):
    """Applies jitter by given values inside PIECE and returns that region."""
    names = tuple(values)
    # An operation that is configured as 0 is not applied, whatever its draw is.
    values = {name: jnp.full(len(images), values.get(name, 0.3)) for name in JITTER}
    inside = np.zeros(images.shape[:3], bool)
    inside[:, *PIECE] = True
    out = jitter_of(names)(images.astype(np.float32), inside, Jitter(**values))
    return np.asarray(out)[:, *PIECE]


@pytest.fixture(scope="module")
def pictures():
    """Noise, smooth colors, and a gray one."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (50, 64, 3))
    y, x = np.mgrid[:50, :64]
    smooth = np.stack([5 * y, 4 * x, 255 - 5 * y], -1)
    gray = np.repeat(noise[..., :1], 3, -1)
    return np.stack([noise, smooth, gray, noise // 4]).astype(np.uint8)


@pytest.mark.parametrize("factor", [0.0, 0.4, 1.7])
@pytest.mark.parametrize(
    "name,enhancer",
    [
        ("brightness", ImageEnhance.Brightness),
        ("contrast", ImageEnhance.Contrast),
        ("saturation", ImageEnhance.Color),
    ],
)
def test_jitter_is_that_of_pillow(name, enhancer, factor, pictures):
    found = jittered(pictures, **{name: factor})
    for image, out in zip(pictures[:, *PIECE], found, strict=True):
        expected = enhancer(Image.fromarray(image)).enhance(factor)
        # Pillow cuts levels off to whole ones.
        assert np.abs(np.floor(out + 1e-3) - np.asarray(expected)).max() <= 1


def test_jitter_is_applied_in_order(pictures):
    """Brightness, then contrast, then saturation."""
    found = jittered(pictures[1:2], brightness=1.2, contrast=0.7, saturation=1.4)[0]
    expected = Image.fromarray(pictures[1, *PIECE])
    for enhancer, factor in (
        (ImageEnhance.Brightness, 1.2),
        (ImageEnhance.Contrast, 0.7),
        (ImageEnhance.Color, 1.4),
    ):
        expected = enhancer(expected).enhance(factor)
    # Each operation amplifies the rounding of the one before.
    assert np.abs(np.floor(found) - np.asarray(expected)).max() <= 4
    assert np.abs(np.floor(found) - np.asarray(expected)).mean() < 1


@pytest.mark.parametrize("turn", [-0.5, 0.3])
def test_hue_is_turned_as_by_colorsys(turn, pictures):
    found = jittered(pictures, hue=turn).reshape(-1, 3)[::7]
    pixels = pictures[:, *PIECE].reshape(-1, 3)[::7] / 255
    expected = []
    for pixel in pixels:
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
        expected.append(colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value))
    np.testing.assert_allclose(found / 255, expected, atol=1e-4)
