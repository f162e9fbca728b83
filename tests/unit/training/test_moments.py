"""Means and spreads, batch by batch, against NumPy over all numbers at once."""

import jax
import numpy as np
import pytest

from vt_flax.training.moments import Moments, merge, take_moments

NONE = Moments(np.zeros(3, np.int32), np.zeros(3, np.float32), np.zeros(3, np.float32))


def merged(values, valid, sizes):
    """The moments of all, in batches of some sizes."""
    take, total, first = jax.jit(take_moments), NONE, 0
    for size in sizes:
        rows = slice(first, first + size)
        total = merge(total, jax.device_get(take(values[rows], valid[rows])))
        first += size
    assert first == len(values)
    return total


@pytest.mark.parametrize("sizes", [(40,), (16, 16, 8), (1, 38, 1)])
def test_a_small_spread_beside_a_large_mean_survives(sizes):
    """Sums of squares in float32 would have no digit of it left."""
    rng = np.random.default_rng(0)
    values = (500 + 1e-2 * rng.normal(size=(40, 3))).astype(np.float32)
    valid = rng.random((40, 3)) < 0.7
    total = merged(values, valid, sizes)
    for i in range(3):
        known = values[valid[:, i], i].astype(np.float64)
        assert total.count[i] == len(known)
        assert total.mean[i] == pytest.approx(known.mean(), rel=1e-6)
        assert total.std[i] == pytest.approx(known.std(), rel=2e-2)
    assert total.mean.dtype == total.squares.dtype == np.float64


def test_what_is_not_valid_counts_for_nothing_whatever_it_is():
    values = np.asarray([[1, 2, 5], [3, np.nan, 7], [np.inf, np.nan, 9]], np.float32)
    valid = np.asarray([[1, 0, 1], [1, 0, 1], [0, 0, 1]], bool)
    total = merged(values, valid, (2, 1))
    np.testing.assert_array_equal(total.count, [2, 0, 3])
    np.testing.assert_allclose(total.mean, [2, 0, 7])
    np.testing.assert_allclose(total.std, [1, 0, np.sqrt(8 / 3)])


def test_examples_may_be_valid_as_a_whole():
    values = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
    valid = np.asarray([True, False, True, True])
    found = take_moments(values, valid)
    np.testing.assert_array_equal(found.count, np.full((2, 3), 3))
    np.testing.assert_allclose(found.mean, values[valid].mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.std, values[valid].std(0), rtol=1e-6)
