"""Mixup, CutMix and random erasing."""

import jax
import numpy as np
import pytest

from vt_flax.data.augment import mixing
from vt_flax.training.config import default_config

COUNT, SIDE = 400, 16


def config(**changes):
    result = default_config().data
    result.update(changes)
    return result


def keys(count=COUNT, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def mix(images, **changes):
    labels = np.arange(len(images), dtype=np.int32)
    settings = config(**changes)
    out, targets = jax.jit(lambda x, n, k: mixing.mix(x, n, settings, k))(
        images, labels, keys(len(images))
    )
    np.testing.assert_array_equal(targets.labels[:, 0], labels)
    np.testing.assert_array_equal(targets.labels[:, 1], labels ^ 1)
    np.testing.assert_allclose(np.sum(targets.weights, 1), 1, atol=1e-6)
    return np.asarray(out), np.asarray(targets.weights[:, 0], np.float64)


def constant():
    """Image i has the value i everywhere."""
    shape = (COUNT, SIDE, SIDE, 3)
    values = np.arange(COUNT, dtype=np.float32)[:, None, None, None]
    return np.broadcast_to(values, shape).copy()


def test_mixup():
    images, alpha = constant(), 0.2
    out, share = mix(images, mixup=alpha)
    own, partner = np.arange(COUNT), np.arange(COUNT) ^ 1
    expected = share * own + (1 - share) * partner
    np.testing.assert_allclose(
        out, np.broadcast_to(expected[:, None, None, None], out.shape), atol=1e-3
    )
    # Mean and variance of Beta(alpha, alpha); partners draw for themselves.
    assert abs(share.mean() - 0.5) < 5 * (share.var() / COUNT) ** 0.5
    assert share.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.2)
    assert abs(np.corrcoef(share[::2], share[1::2])[0, 1]) < 0.3


def test_cutmix():
    images = constant()
    out, share = mix(images, cutmix=1.0)
    for i in range(COUNT):
        cut = out[i, ..., 0] == (i ^ 1)
        assert ((out[i, ..., 0] == i) | cut).all()
        # The label's weight is the area that is left, after the border cut it off.
        assert share[i] == pytest.approx(1 - cut.mean(), abs=1e-6)
        rows, columns = cut.any(1), cut.any(0)
        np.testing.assert_array_equal(cut, rows[:, None] & columns[None, :])
        for line in (rows, columns):
            assert np.abs(np.diff(np.pad(line.astype(int), 1))).sum() in (0, 2)
    # A uniform share before the border: half of the area, and more that is left.
    assert 0.5 < share.mean() < 0.72
    assert len(set(share)) > 50


def test_with_both_each_example_takes_one():
    out, share = mix(constant(), mixup=1.0, cutmix=1.0)
    whole = np.asarray([len(np.unique(image)) == 1 for image in out])
    between = np.asarray([image.flat[0] % 1 != 0 for image in out])
    mixed = whole & between
    assert 150 < mixed.sum() < 250
    own, partner = np.arange(COUNT), np.arange(COUNT) ^ 1
    np.testing.assert_allclose(
        out.mean((1, 2, 3)), share * own + (1 - share) * partner, atol=1e-2
    )


def test_erasing():
    images = np.ones((COUNT, 20, 30, 3), np.float32)
    out = np.asarray(jax.jit(lambda x, k: mixing.erase(x, 0.25, k))(images, keys()))
    erased = out[..., 0] == 0
    assert ((out == 0) == erased[..., None]).all() and (out[~erased] == 1).all()
    hit = erased.any((1, 2))
    # Five standard deviations of a binomial(400, 1 / 4).
    assert abs(hit.sum() - 100) < 44
    areas, ratios = [], []
    for mask in erased[hit]:
        rows, columns = mask.any(1), mask.any(0)
        np.testing.assert_array_equal(mask, rows[:, None] & columns[None, :])
        areas.append(mask.mean())
        ratios.append(rows.sum() / columns.sum())
    assert 0.01 < min(areas) and max(areas) < 0.36 and np.ptp(areas) > 0.2
    assert min(ratios) > 0.2 and max(ratios) < 4.5
    assert np.ptp(np.log(ratios)) > 1.2
    reached = erased.any(0)
    assert reached[:, 0].any() and reached[:, -1].any()
    assert reached[0].any() and reached[-1].any()
