"""Moments, batch by batch, against NumPy over all values at once."""

import jax
import numpy as np
import pytest

from vt_flax.training.moments import Moments, merge, take_moments


@pytest.mark.parametrize("sizes", [(40,), (16, 16, 8)])
def test_a_small_deviation_beside_a_large_mean(sizes):
    """Sums of squares in float32 would lose it. What is not valid may be NaN."""
    rng = np.random.default_rng(0)
    values = (500 + 1e-2 * rng.normal(size=(40, 3))).astype(np.float32)
    valid = rng.random((40, 3)) < 0.7
    valid[:, 2] = False
    values[~valid] = np.nan
    take, first = jax.jit(take_moments), 0
    total = Moments(np.zeros(3, np.int32), *np.zeros((2, 3), np.float32))
    for size in sizes:
        rows = slice(first, first + size)
        total = merge(total, jax.device_get(take(values[rows], valid[rows])))
        first += size
    for i in range(2):
        known = values[valid[:, i], i].astype(np.float64)
        assert total.count[i] == len(known)
        assert total.mean[i] == pytest.approx(known.mean(), rel=1e-6)
        assert total.std[i] == pytest.approx(known.std(), rel=2e-2)
    assert total.count[2] == total.std[2] == 0


def test_whole_examples_may_be_valid():
    values = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
    valid = np.asarray([True, False, True, True])
    found = take_moments(values, valid)
    np.testing.assert_array_equal(found.count, np.full((2, 3), 3))
    np.testing.assert_allclose(found.mean, values[valid].mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.std, values[valid].std(0), rtol=1e-6)
