"""Counts by which a crop is chosen, against a count pixel by pixel."""

import jax
import numpy as np

from vt_flax.data.augment import pairs


def counted(labels, rows, columns, most):
    """The two counts of each crop, pixel by pixel."""
    found = np.zeros((2, *rows.shape[:2]))
    for b, mask in enumerate(labels):
        for k in range(rows.shape[1]):
            weights = np.outer(rows[b, k], columns[b, k])[mask != 255]
            counts = np.bincount(mask[mask != 255], weights, 256)
            over = counts.max() > most * counts.sum()
            found[:, b, k] = counts.sum(), counts.max() if over else -1
    return found


def test_counts_are_exact():
    """Of masks that are rich in one class or another, rows taken 300 times."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 256, (6, 20, 30), dtype=np.uint8)
    main = np.asarray([0, 254, 170, 85, 255, 3])[:, None, None]
    share = np.asarray([0.9, 0.6, 0.3, 0.8, 0.7, 0.95])[:, None, None]
    labels = np.where(rng.random(labels.shape) < share, main, labels).astype(np.uint8)
    # Most pixels have each bit of 255, which is none of their classes.
    holes = rng.random(labels.shape[1:]) < 0.8
    labels[5] = np.where(holes, 255, rng.choice([254, 253, 251], holes.shape))
    rows = rng.choice([0, 1, 2, 301], (6, 4, 20)).astype(np.float32)
    columns = rng.choice([0, 1, 3], (6, 4, 30)).astype(np.float32)
    rows[0, 0] = 0
    count = jax.jit(pairs.count_largest)
    labeled, largest = jax.device_get(count(labels, rows, columns))
    expected = counted(labels, rows, columns, 0.5)
    np.testing.assert_array_equal(labeled, expected[0])
    over = expected[1] >= 0
    assert 0 < over.sum() < over.size
    np.testing.assert_array_equal(largest[over], expected[1][over])
    assert (largest <= 0.5 * labeled)[~over].all()
