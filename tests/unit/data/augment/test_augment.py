"""Normalization and mirroring on the device."""

import jax
import numpy as np
import pytest

from vt_flax.data import augment as module
from vt_flax.data.augment import normalize
from vt_flax.parallel.mesh import batch_sharding, make_mesh
from vt_flax.training.config import default_config

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]


def config(**changes):
    result = default_config().data
    result.update({"mean": MEAN, "std": STD, **changes})
    return result


def augment(images, config, key):
    """Returns the images alone; nothing is mixed."""
    labels = np.arange(len(images), dtype=np.int32)
    return module.augment(images, labels, config, key)[0]


def test_labels_are_kept_where_nothing_is_mixed():
    labels = np.asarray([3, 1, 2], np.int32)
    _, targets = module.augment(noise(3, 4, 4, 3), labels, config(), jax.random.key(0))
    np.testing.assert_array_equal(targets.labels, labels[:, None])
    np.testing.assert_array_equal(targets.weights, np.ones((3, 1)))


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def expected(images):
    """Normalized in float64."""
    return (images.astype(np.float64) / 255 - np.asarray(MEAN)) / np.asarray(STD)


def test_normalize():
    images = noise(3, 4, 5, 3)
    out = normalize(images, config())
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, expected(images), atol=1e-5)


def test_normalize_by_hand():
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


@pytest.mark.parametrize("seed", [0, 1])
def test_about_half_of_the_images_are_mirrored(seed):
    images = noise(400, 3, 5, 3)
    out = np.asarray(augment(images, config(), jax.random.key(seed)))
    assert out.dtype == np.float32
    # Five standard deviations of a binomial(400, 1 / 2).
    assert abs(mirrored(images, out).sum() - 200) < 50


EVERYTHING = {
    "augment": "autoaugment",
    "erasing": 0.5,
    "mixup": 0.4,
    "cutmix": 1.0,
}


def run_all(images, key=0, **changes):
    labels = np.arange(len(images), dtype=np.int32)
    settings = config(**{**EVERYTHING, **changes})
    out = jax.jit(lambda x, n, k: module.augment(x, n, settings, k))(
        images, labels, jax.random.key(key)
    )
    return jax.device_get(out)


@pytest.mark.slow
def test_the_result_does_not_depend_on_the_devices():
    """Sixteen examples on one device, and spread over eight."""
    images = noise(16, 32, 32, 3)
    alone, targets = run_all(images)
    sharding = batch_sharding(make_mesh())
    spread, spread_targets = run_all(jax.device_put(images, sharding))
    assert len(sharding.device_set) == 8
    np.testing.assert_allclose(spread, alone, atol=1e-5)
    np.testing.assert_array_equal(spread_targets.weights, targets.weights)


@pytest.mark.slow
def test_each_step_takes_its_own_draw():
    images = noise(8, 32, 32, 3)
    one, _ = run_all(images)
    np.testing.assert_array_equal(one, run_all(images)[0])
    assert not np.array_equal(one, run_all(images, key=1)[0])


@pytest.mark.slow
@pytest.mark.parametrize("key", ["augment", "erasing", "mixup", "cutmix"])
def test_every_key_is_read(key):
    images = noise(16, 32, 32, 3)
    off = {"augment": "none"}.get(key, 0.0)
    assert not np.array_equal(run_all(images)[0], run_all(images, **{key: off})[0])


@pytest.mark.slow
@pytest.mark.usefixtures("well_compiled")
def test_one_purpose_does_not_change_the_draws_of_another():
    """Images that are not erased are what they are where erasing is off."""
    images = noise(32, 32, 32, 3)
    settings = {"mixup": 0.0, "cutmix": 0.0}
    plain, _ = run_all(images, **settings, erasing=0.0)
    erased, _ = run_all(images, **settings)
    kept = erased != 0
    assert 0.3 < kept.mean() < 1
    np.testing.assert_array_equal(erased[kept], plain[kept])
