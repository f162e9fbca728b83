"""The order of examples: permutations, the same for any number of processes."""

import collections
import itertools

import numpy as np
import pytest

from vt_flax.data import order


def epoch_order(count, seed, epoch):
    return order.locate(range(epoch * count, (epoch + 1) * count), count, seed)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 100, 1000, 9973])
@pytest.mark.parametrize("seed", [0, 1, -1, 2**40])
def test_each_epoch_holds_every_example_once(count, seed):
    for epoch in range(3):
        found = epoch_order(count, seed, epoch)
        np.testing.assert_array_equal(np.sort(found), np.arange(count))


def test_an_epoch_of_imagenet_holds_every_example_once():
    count = 1_281_167
    found = order.locate(range(count), count, 3)
    assert np.array_equal(np.bincount(found, minlength=count), np.ones(count))


@pytest.mark.parametrize("seed,epoch", [(0, 1), (0, 2), (1, 0), (2, 0), (-1, 0)])
def test_other_epochs_and_seeds_have_other_orders(seed, epoch):
    first = epoch_order(50, 0, 0)
    # Of two random orders of 50, one place agrees on average.
    assert (first == epoch_order(50, seed, epoch)).sum() < 8
    assert (first == np.arange(50)).sum() < 8
    assert (epoch_order(50, -1, 0) == epoch_order(50, 1, 0)).sum() < 8


def chi_square(counts, expected):
    return float(((np.asarray(counts) - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("count", [2, 5, 16, 37])
def test_every_example_is_everywhere_equally_often(count):
    """A chi-square of places by examples, over seeds; five standard deviations."""
    runs = 4000
    found = np.stack([epoch_order(count, seed, 0) for seed in range(runs)])
    table = np.stack([np.bincount(column, minlength=count) for column in found.T])
    freedom = (count - 1) ** 2
    value = chi_square(table, runs / count)
    assert abs(value - freedom) < 5 * (2 * freedom) ** 0.5 + 1


def test_neighbors_in_an_epoch_are_any_two_examples():
    """All pairs (first, next) of 7 examples, over epochs of one seed."""
    count, epochs = 7, 3000
    rows = order.locate(range(count * epochs), count, 0).reshape(epochs, count)
    pairs = collections.Counter(
        pair for row in rows.tolist() for pair in itertools.pairwise(row)
    )
    total, kinds = epochs * (count - 1), count * (count - 1)
    assert len(pairs) == kinds
    value = chi_square(list(pairs.values()), total / kinds)
    assert value < kinds + 5 * (2 * kinds) ** 0.5


def test_successive_epochs_are_independent():
    """Where an example stood before says nothing of where it comes next."""
    count = 400
    places = [np.argsort(epoch_order(count, 0, epoch)) for epoch in range(6)]
    for a, b in itertools.combinations(places, 2):
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / count**0.5


def test_rows_of_a_part_by_hand():
    assert list(order.local_block(8)) == [0, 1, 2, 3, 4, 5, 6, 7]
    assert list(order.local_block(8, 0, 2)) == [0, 1, 2, 3]
    assert list(order.local_block(8, 1, 2)) == [4, 5, 6, 7]
    assert list(order.local_block(8, 3, 4)) == [6, 7]


@pytest.mark.parametrize("process_count", [1, 2, 4])
def test_processes_make_up_the_global_batches(process_count):
    """Batches of 8 from 10 examples straddle the epochs; 10 steps are 8 epochs."""
    count, seed, batch = 10, 3, 8
    epochs = np.concatenate([epoch_order(count, seed, e) for e in range(8)])
    for step in range(10):
        joined = [
            index
            for process_index in range(process_count)
            for index in order.locate(
                step * batch + order.local_block(batch, process_index, process_count),
                count,
                seed,
            )
        ]
        assert joined == epochs[step * batch : (step + 1) * batch].tolist()


def test_a_batch_larger_than_the_split_goes_round_it():
    found = order.locate(range(7), 3, 0)
    assert sorted(found[:3]) == sorted(found[3:6]) == [0, 1, 2]


def test_a_row_alone_is_the_row_in_the_sequence():
    """Rows far apart and in no order change nothing."""
    count, seed = 13, 7
    sequence = order.locate(range(10 * count), count, seed)
    shuffled = np.random.default_rng(0).permutation(10 * count)[:40]
    np.testing.assert_array_equal(
        order.locate(shuffled, count, seed), sequence[shuffled]
    )
    for row in shuffled[:10]:
        assert order.locate([int(row)], count, seed)[0] == sequence[row]


def test_no_rows():
    assert order.locate([], 10, 0).shape == (0,)
