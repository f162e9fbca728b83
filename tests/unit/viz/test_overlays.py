"""Maps over images: colors against Pillow and plain arithmetic."""

import matplotlib
import numpy as np
import pytest
from made_maps import softmax_maps
from PIL import Image

from vt_flax.viz.overlays import covered_cells, overlay, shrink

BLACK = np.zeros((40, 56, 3), np.uint8)


def coefficients_of(colors, low, high):
    """Reads levels over black back from their colors, as a person with a ruler."""
    table = 0.75 * 255 * matplotlib.colormaps["inferno"](np.arange(256))[:, :3]
    away = np.abs(colors[..., None, :].astype(float) - table).sum(-1)
    assert away.min(-1).max() <= 3
    return low + (away.argmin(-1) + 0.5) / 256 * (high - low)


@pytest.mark.parametrize("size", [(140, 100), (7, 5)])
def test_an_overlay_shows_the_coefficients(size):
    (map_,) = softmax_maps(1, 5, 7)
    found = coefficients_of(overlay(BLACK, map_, size), map_.min(), map_.max())
    expected = np.asarray(Image.fromarray(map_).resize(size, Image.Resampling.BILINEAR))
    step = (map_.max() - map_.min()) / 256
    np.testing.assert_allclose(found, expected, atol=1.5 * step)
    if size == (140, 100):
        # In the middle of a cell is the cell's own coefficient.
        centers = found[10::20, 10::20]
        np.testing.assert_allclose(centers, map_, atol=0.05 * np.ptp(map_))


def test_a_constant_map_has_one_color():
    found = overlay(BLACK, np.full((3, 4), 0.25, np.float32), (40, 30))
    assert len(np.unique(found.reshape(-1, 3), axis=0)) == 1


def test_a_part_is_cut_out_of_the_whole():
    """As if all were enlarged, and then what lies on the image were taken."""
    (map_,) = softmax_maps(1, 6, 8)
    whole = Image.fromarray(map_).resize((80, 60), Image.Resampling.BILINEAR)
    part = np.asarray(whole)[:30, :50]
    low, high = map_[:3, :5].min(), map_[:3, :5].max()
    found = overlay(BLACK, map_, (50, 30), (30 / 60, 50 / 80))
    found = coefficients_of(found, low, high)
    step = (high - low) / 256
    np.testing.assert_allclose(found, np.clip(part, low, high), atol=1.5 * step)


def test_the_cells_on_an_image():
    map_ = np.full((4, 5), 1 / 20, np.float32)
    assert covered_cells(map_, (1.0, 1.0)).shape == (4, 5)
    assert covered_cells(map_, (0.55, 1.0)).shape == (3, 5)
    assert covered_cells(map_, (0.3, 0.6000000000000001)).shape == (2, 3)


@pytest.mark.parametrize("shape", [(30, 40), (700, 900), (5, 2000)])
def test_large_images_shrink(shape):
    y, x = np.mgrid[: shape[0], : shape[1]]
    ramp = np.stack([x * 255 // shape[1], y * 255 // shape[0], 0 * x], -1)
    ramp = ramp.astype(np.uint8)
    found = shrink(ramp, 100)
    if max(shape) <= 100:
        np.testing.assert_array_equal(found, ramp)
        return
    size = [max(1, round(side * 100 / max(shape))) for side in shape]
    assert list(found.shape) == [*size, 3]
    exact = Image.fromarray(ramp).resize(size[::-1], Image.Resampling.BILINEAR)
    assert np.abs(found.astype(int) - np.asarray(exact)).max() <= 6
