"""The augmentation of a batch as a whole: normalization, mirroring, draws, devices."""

import functools

import jax
import numpy as np
import pytest

from vt_flax.data.augment import augment, normalize
from vt_flax.parallel.mesh import batch_sharding, make_mesh
from vt_flax.training.config import default_config

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]


def config(**changes):
    result = default_config().data
    result.update({"mean": MEAN, "std": STD, **changes})
    return result


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def expected(images):
    """Normalized in float64."""
    return (images.astype(np.float64) / 255 - np.asarray(MEAN)) / np.asarray(STD)


def test_normalize():
    images = np.array([0, 255, 51], np.uint8).reshape(1, 1, 1, 3)
    out = normalize(images, config()).ravel()
    # (0 - 0.5) / 0.2, (1 - 0.4) / 0.25, (0.2 - 0.3) / 0.3
    np.testing.assert_allclose(out, [-2.5, 2.4, -1 / 3], rtol=1e-5)


def mirrored(images, out):
    """Returns which examples were mirrored, each as a whole or not at all."""
    plain = np.abs(out - expected(images)).max((1, 2, 3)) < 1e-5
    flipped = np.abs(out - expected(images[:, :, ::-1])).max((1, 2, 3)) < 1e-5
    assert (plain ^ flipped).all()
    return flipped


def test_about_half_of_the_images_are_mirrored():
    images, labels = noise(400, 3, 5, 3), np.arange(400, dtype=np.int32)
    out, targets = augment(images, labels, config(), jax.random.key(0))
    assert out.dtype == np.float32
    # Five standard deviations of a binomial(400, 1 / 2).
    assert abs(mirrored(images, np.asarray(out)).sum() - 200) < 50
    np.testing.assert_array_equal(targets.labels, labels[:, None])
    np.testing.assert_array_equal(targets.weights, np.ones((400, 1)))


EVERYTHING = {"erasing": 0.5, "mixup": 0.4, "cutmix": 1.0}


@functools.cache
def program(sharding=None, **changes):
    """Returns the compiled augmentation of 16 images."""
    settings = config(**{**EVERYTHING, **changes})
    apply = jax.jit(lambda x, n, k: augment(x, n, settings, k, sharding))
    images = jax.ShapeDtypeStruct((16, 16, 16, 3), np.uint8, sharding=sharding)
    labels = jax.ShapeDtypeStruct((16,), np.int32, sharding=sharding)
    return apply.lower(images, labels, jax.random.key(0)).compile()


def run_all(sharding=None, key=0, **changes):
    batch = noise(16, 16, 16, 3), np.arange(16, dtype=np.int32)
    if sharding:
        batch = jax.device_put(batch, sharding)
    return jax.device_get(program(sharding, **changes)(*batch, jax.random.key(key)))


@pytest.mark.slow
@pytest.mark.usefixtures("well_compiled")
def test_the_result_depends_on_the_key_and_not_on_the_devices():
    """Sixteen examples on one device, and sharded over eight."""
    alone, targets = run_all()
    sharding = batch_sharding(make_mesh())
    sharded, sharded_targets = run_all(sharding)
    assert len(sharding.device_set) == 8
    np.testing.assert_allclose(sharded, alone, atol=1e-5)
    np.testing.assert_array_equal(sharded_targets.weights, targets.weights)
    assert not np.array_equal(alone, run_all(key=1)[0])


@pytest.mark.slow
@pytest.mark.usefixtures("well_compiled")
def test_one_purpose_does_not_change_the_draws_of_another():
    """Images that are not erased are what they are where erasing is off."""
    plain, _ = run_all(mixup=0.0, cutmix=0.0, erasing=0.0)
    erased, _ = run_all(mixup=0.0, cutmix=0.0)
    kept = erased != 0
    assert 0.3 < kept.mean() < 1
    np.testing.assert_array_equal(erased[kept], plain[kept])
    mixed, _ = run_all(erasing=0.0)
    assert not np.array_equal(mixed, plain)
