"""The order of examples: a permutation each epoch, alike for any number of parts."""

import numpy as np
import pytest

from vt_flax.data import order


def run_order(rows, count, seed):
    return [order.locate(row, count, seed) for row in rows]


@pytest.mark.parametrize("count", [1, 2, 7, 100])
@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_each_epoch_holds_every_example_once(count, seed):
    for epoch in range(3):
        rows = range(epoch * count, (epoch + 1) * count)
        assert sorted(run_order(rows, count, seed)) == list(range(count))


@pytest.mark.parametrize("seed,epoch", [(0, 1), (0, 2), (1, 0), (2, 0)])
def test_other_epochs_and_seeds_have_other_orders(seed, epoch):
    first = order.permutation(50, 0, 0)
    assert not np.array_equal(first, order.permutation(50, seed, epoch))
    assert not np.array_equal(first, np.arange(50))


def test_every_example_is_first_about_equally_often():
    counts = np.bincount(
        [order.permutation(5, seed, 0)[0] for seed in range(1500)], minlength=5
    )
    # Five standard deviations of a binomial(1500, 1 / 5).
    assert np.abs(counts - 300).max() < 5 * (1500 * 0.2 * 0.8) ** 0.5


def test_a_permutation_cannot_be_changed_by_its_readers():
    with pytest.raises(ValueError, match="read-only"):
        order.permutation(10, 0, 0)[0] = 3


def test_rows_of_a_part_by_hand():
    assert list(order.training_rows(3, 8)) == [24, 25, 26, 27, 28, 29, 30, 31]
    assert list(order.training_rows(3, 8, 0, 2)) == [24, 25, 26, 27]
    assert list(order.training_rows(3, 8, 1, 2)) == [28, 29, 30, 31]
    assert list(order.training_rows(3, 8, 3, 4)) == [30, 31]


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_parts_make_up_the_global_batches(parts):
    """Batches of 8 from 10 examples straddle the epochs; 10 steps are 8 epochs."""
    count, seed, batch = 10, 3, 8
    epochs = np.concatenate([order.permutation(count, seed, e) for e in range(8)])
    for step in range(10):
        joined = [
            index
            for part in range(parts)
            for index in run_order(
                order.training_rows(step, batch, part, parts), count, seed
            )
        ]
        assert joined == epochs[step * batch : (step + 1) * batch].tolist()


def test_a_batch_larger_than_the_split_goes_round_it():
    rows = order.training_rows(0, 7)
    found = run_order(rows, 3, 0)
    assert sorted(found[:3]) == sorted(found[3:6]) == [0, 1, 2]


def test_a_row_alone_is_the_row_in_the_sequence():
    """Rows far apart, in no order and after the cache is gone, change nothing."""
    count, seed = 13, 7
    rows = np.arange(10 * count)
    sequence = np.asarray(run_order(rows, count, seed))
    shuffled = np.random.default_rng(0).permutation(rows)[:40]
    for row in shuffled:
        order.permutation.cache_clear()
        assert order.locate(int(row), count, seed) == sequence[row]
