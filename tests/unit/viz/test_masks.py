"""Masks over images, and legends."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from vt_flax.viz.masks import (
    MOST_NAMED,
    OPACITY,
    colors,
    draw_mask,
    legend,
    paint,
)

NAMES = ("sky", "<b>road & rail</b>", "cañon")


@pytest.mark.parametrize("count", [1, 3, 20, 150, 171, 254])
def test_colors_are_distinct(count):
    found = colors(count)
    assert found.shape == (count, 3)
    assert found.min() >= 0 and found.max() <= 1
    levels = (found * 255).round().astype(int)
    assert len(np.unique(levels, axis=0)) == count
    # A class has one colour, whatever the number of classes.
    np.testing.assert_array_equal(found, colors(254)[:count])


def test_neighboring_colors_differ_much():
    found = colors(254)
    assert np.abs(np.diff(found, axis=0)).max(1).min() > 0.25


def test_paint():
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (5, 6, 3), np.uint8)
    labels = generator.integers(0, 3, (5, 6)).astype(np.uint8)
    labels[0, :3] = 255, 3, 254
    found = paint(image, labels, 3)
    assert found.shape == image.shape
    palette = colors(3)
    for y in range(5):
        for x in range(6):
            own = image[y, x] / 255
            if labels[y, x] < 3:
                own = own + OPACITY * (palette[labels[y, x]] - own)
            np.testing.assert_allclose(found[y, x], 255 * own, atol=0.51)
    assert not np.allclose(found[1:], image[1:], atol=13)


def test_legend_has_shares_largest_first():
    labels = np.asarray([[0, 2, 2, 255], [2, 2, 0, 2]], np.uint8)
    found = legend(labels, NAMES)
    assert [p.get_label() for p in found] == ["cañon 62.5%", "sky 25.0%"]
    for patch, index in zip(found, (2, 0), strict=True):
        np.testing.assert_allclose(patch.get_facecolor()[:3], colors(3)[index])
    assert legend(np.full((2, 2), 255, np.uint8), NAMES) == []


def test_classes_may_be_called_as_they_like():
    """Also what matplotlib reads as mathematics, or leaves out of a legend."""
    names = [r"_$\nonsense$", "_"]
    axes = Figure().subplots()
    handles = legend(np.asarray([[0, 0, 0, 1]], np.uint8), names)
    shown = axes.legend(handles=handles)
    axes.figure.draw_without_rendering()
    texts = [text.get_text().lstrip("\u200b") for text in shown.get_texts()]
    assert texts == [r"_\$\nonsense\$ 75.0%", "_ 25.0%"]


def test_a_long_legend_leaves_out_the_smallest():
    count = MOST_NAMED + 3
    labels = np.repeat(np.arange(count), np.arange(count) + 1).astype(np.uint8)[None]
    found = legend(labels, [f"c{i}" for i in range(count)])
    names = [patch.get_label().split()[0] for patch in found]
    assert names == [f"c{i}" for i in range(count - 1, 2, -1)]


def has_color(picture, color):
    """Returns which pixels have a color, within one level."""
    return (np.abs(picture.astype(int) - color) <= 1).all(-1)


@pytest.mark.parametrize("height, width", [(30, 40), (200, 20), (4, 200)])
def test_draw_mask(tmp_path, height, width):
    """The image is on the left, and a mask of one class over it on the right."""
    image = np.full((height, width, 3), (200, 40, 90), np.uint8)
    labels = np.ones((height, width), np.uint8)
    draw_mask(tmp_path / "a.png", image, labels, NAMES)
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
