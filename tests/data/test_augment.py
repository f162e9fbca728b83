"""Normalisation and mirroring on the device."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from vt_flax.data.augment import augment, normalise

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]


def config(flip=True, mean=MEAN, std=STD):
    return ConfigDict({"flip": flip, "mean": mean, "std": std})


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def expected(images):
    """Normalised in float64."""
    return (images.astype(np.float64) / 255 - np.asarray(MEAN)) / np.asarray(STD)


def test_normalise():
    images = noise(3, 4, 5, 3)
    out = normalise(images, config())
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, expected(images), atol=1e-5)


def test_normalise_by_hand():
    images = np.array([0, 255, 51], np.uint8).reshape(1, 1, 1, 3)
    out = normalise(images, config()).ravel()
    # (0 - 0.5) / 0.2, (1 - 0.4) / 0.25, (0.2 - 0.3) / 0.3
    np.testing.assert_allclose(out, [-2.5, 2.4, -1 / 3], rtol=1e-5)


def test_no_flip_is_normalisation_alone():
    images = noise(16, 4, 5, 3)
    out = augment(images, config(flip=False), jax.random.key(0))
    np.testing.assert_allclose(out, expected(images), atol=1e-5)


def mirrored(images, out):
    """Returns which examples were mirrored, each as a whole or not at all."""
    plain = np.abs(out - expected(images)).max((1, 2, 3)) < 1e-5
    flipped = np.abs(out - expected(images[:, :, ::-1])).max((1, 2, 3)) < 1e-5
    assert (plain ^ flipped).all()
    return flipped


@pytest.mark.parametrize("seed", [0, 1])
def test_about_half_of_the_images_are_mirrored(seed):
    images = noise(400, 3, 5, 3)
    out = np.asarray(augment(images, config(), jax.random.key(seed)))
    assert out.dtype == np.float32
    # Five standard deviations of a binomial(400, 1 / 2).
    assert abs(mirrored(images, out).sum() - 200) < 50


def test_the_key_decides():
    images = noise(64, 3, 5, 3)

    def run(seed):
        out = augment(images, config(), jax.random.key(seed))
        return mirrored(images, np.asarray(out))

    np.testing.assert_array_equal(run(5), run(5))
    assert (run(5) != run(6)).any()


def test_it_runs_inside_a_compiled_step():
    images = noise(8, 3, 5, 3)
    key = jax.random.key(2)
    compiled = jax.jit(lambda x, k: augment(x, config(), k))(images, key)
    np.testing.assert_allclose(compiled, augment(images, config(), key), atol=1e-6)
