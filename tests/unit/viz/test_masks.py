"""Masks over images, and their legend."""

import numpy as np
import pytest
from PIL import Image

from vt_flax.viz.masks import OPACITY, colors, draw_mask, paint

# What matplotlib would read as mathematics or leave out of a legend, too.
NAMES = ("sky", r"_$\nonsense$", "cañon")


def test_colors_are_distinct():
    found = colors(254)
    assert found.min() >= 0 and found.max() <= 1
    levels = (found * 255).round().astype(int)
    assert len(np.unique(levels, axis=0)) == 254
    # A class has one color, whatever the number of classes.
    np.testing.assert_array_equal(found[:20], colors(20))
    assert np.abs(np.diff(found, axis=0)).max(1).min() > 0.25


def test_paint():
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (5, 6, 3), np.uint8)
    labels = generator.integers(0, 3, (5, 6)).astype(np.uint8)
    labels[0, :3] = 255, 3, 254
    found = paint(image, labels, 3)
    palette = colors(3)
    for y, x in np.ndindex(5, 6):
        expected = image[y, x] / 255
        if labels[y, x] < 3:
            expected = expected + OPACITY * (palette[labels[y, x]] - expected)
        np.testing.assert_allclose(found[y, x], 255 * expected, atol=0.51)


def has_color(picture, color):
    """Returns which pixels have a color, within one level."""
    return (np.abs(picture.astype(int) - color) <= 1).all(-1)


@pytest.mark.parametrize("height, width", [(30, 40), (200, 20)])
def test_draw_mask(tmp_path, height, width):
    """The image is on the left, and a mask of one class over it on the right."""
    image = np.full((height, width, 3), (200, 40, 90), np.uint8)
    labels = np.ones((height, width), np.uint8)
    draw_mask(tmp_path / "a.png", image, labels, NAMES, [(NAMES[1], 1.0)])
    with Image.open(tmp_path / "a.png") as file:
        assert file.format == "PNG"
        picture = np.asarray(file.convert("RGB"))
    painted = (1 - OPACITY) * image[0, 0] + OPACITY * 255 * colors(3)[1]
    left = has_color(picture, image[0, 0])
    right = has_color(picture, painted)
    assert left.sum() > 300 and right.sum() > 300
    assert left.nonzero()[1].max() < right.nonzero()[1].min()
    sides = [np.ptp(axis) + 1 for axis in left.nonzero()]
    assert sides[0] / sides[1] == pytest.approx(height / width, rel=0.1, abs=0.02)
    # The legend's patch, further to the right.
    patch = has_color(picture, 255 * colors(3)[1])
    assert patch.sum() > 20
    assert patch.nonzero()[1].min() > right.nonzero()[1].max()
