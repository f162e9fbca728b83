"""Random draws for pairs: uniform and independent."""

import jax
import numpy as np
from test_pairs import CROP, JITTER, config, examples
from test_policies import chi_square

from vt_flax.data.augment import pairs

DRAWS = 20_000


def drawn(config, sizes):
    """What is drawn for many examples of these sizes."""
    keys = jax.random.split(jax.random.key(0), len(sizes))
    return jax.device_get(jax.jit(lambda k, n: pairs.draw(k, n, config))(keys, sizes))


def is_uniform(shares, cells=50):
    """Numbers from 0 to 1, by chi-square; deterministic for this seed."""
    assert -1e-6 < shares.min() and shares.max() < 1 + 1e-6
    counts = np.histogram(shares, cells, (0, 1))[0]
    value, freedom = chi_square(counts, [len(shares) / cells] * cells)
    # Beyond this in one run of a million.
    return value < freedom + 5 * (2 * freedom) ** 0.5


def test_scales_and_places_are_drawn_uniformly():
    """Of crops within the image, and of images within the crop."""
    sizes = np.full((DRAWS, 2), (1000, 1500), np.int32)
    sizes[::2] = 10, 12
    draw = drawn(config(scale_min=0.5, scale_max=2.0), sizes)
    scale = draw.resized[1::2, 0] / 1000
    assert (
        scale.min() < 0.501 and scale.max() > 1.999 and is_uniform(scale / 1.5 - 1 / 3)
    )
    np.testing.assert_allclose(draw.resized[1::2, 1], 1500 * scale, atol=1.3)
    # Whole numbers become uniform between them and the next.
    spread = np.random.default_rng(0).random(draw.starts.shape)
    rest = (draw.resized - CROP)[:, None]
    assert (rest[::2] < 0).all() and (rest[1::2] > 0).all()
    places = (np.abs(draw.starts) + spread) / (np.abs(rest) + 1)
    assert (draw.starts * rest >= 0).all()
    for first in (0, 1):
        for i, j in ((0, 0), (9, 1)):
            assert is_uniform(places[first::2, i, j])
    # Neither the scale nor the other tries tell where a crop lies.
    place = places[1::2, 0, 0]
    for other in (scale, places[1::2, 1, 0], places[1::2, 0, 1], draw.mirrored[1::2]):
        assert abs(np.corrcoef(place, other)[0, 1]) < 5 / len(place) ** 0.5
    assert abs(draw.mirrored.mean() - 0.5) < 2.5 / DRAWS**0.5


def test_the_short_side_is_what_is_scaled():
    sizes = np.asarray([(300, 500), (50, 30), (400, 200), (7, 7)] * 500, np.int32)
    resized = drawn(config(short_side=640), sizes).resized
    assert is_uniform(resized.min(1) / 640 / 1.5 - 1 / 3)
    ratio = resized.max(1) / resized.min(1)
    np.testing.assert_allclose(ratio, sizes.max(1) / sizes.min(1), rtol=0.01)


def test_colors_are_drawn_uniformly():
    settings = config(brightness=0.3, contrast=1.5, hue=0.2)
    jitter = drawn(settings, np.ones((DRAWS, 2), np.int32)).jitter
    assert is_uniform((jitter.brightness - 0.7) / 0.6)
    # Not from -0.5 on.
    assert is_uniform(jitter.contrast / 2.5)
    assert is_uniform((jitter.hue + 0.2) / 0.4)
    assert (jitter.saturation == 1).all()
    together = np.corrcoef([jitter.brightness, jitter.contrast, jitter.hue])
    assert np.abs(together - np.eye(3)).max() < 5 / DRAWS**0.5


def test_one_purpose_does_not_change_the_draws_of_another():
    sizes = examples(32)[2]
    everything = drawn(config(**JITTER), sizes)
    less = drawn(config(**{**JITTER, "contrast": 0.0, "data__flip": False}), sizes)
    for name in ("resized", "starts"):
        np.testing.assert_array_equal(getattr(less, name), getattr(everything, name))
    assert everything.mirrored.any() and not less.mirrored.any()
    for name in JITTER:
        same = getattr(less.jitter, name) == getattr(everything.jitter, name)
        assert same.all() if name != "contrast" else not same.any()
