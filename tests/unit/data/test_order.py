"""The order of examples: permutations, the same for any number of processes."""

import collections
import itertools

import numpy as np
import pytest

from vt_flax.data import order

# Of ten examples, the third epoch of seed 3.
KNOWN = [9, 5, 0, 3, 2, 6, 4, 7, 1, 8]


def epoch_order(count, seed, epoch):
    return order.locate(range(epoch * count, (epoch + 1) * count), count, seed)


@pytest.mark.parametrize("count", [1, 2, 7, 1000, 1_281_167])
def test_each_epoch_holds_every_example_once(count):
    for seed, epoch in ((0, 0), (-1, 1)):
        found = epoch_order(count, seed, epoch)
        np.testing.assert_array_equal(np.bincount(found), np.ones(count))


def test_the_order_is_what_it_was():
    """Runs that were started with earlier versions are resumed in the same order."""
    assert epoch_order(10, 3, 2).tolist() == KNOWN


@pytest.mark.parametrize("seed, epoch", [(0, 1), (1, 0), (-1, 0)])
def test_other_epochs_and_seeds_have_other_orders(seed, epoch):
    first = epoch_order(50, 0, 0)
    # Of two random orders of 50, one place agrees on average.
    assert (first == epoch_order(50, seed, epoch)).sum() < 8
    assert (first == np.arange(50)).sum() < 8
    assert (epoch_order(50, -1, 0) == epoch_order(50, 1, 0)).sum() < 8


def chi_square(counts, expected):
    return float(((np.asarray(counts) - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("count", [5, 16])
def test_every_example_is_everywhere_equally_often(count):
    """A chi-square of places by examples, over seeds; five standard deviations."""
    runs = 1000
    found = np.stack([epoch_order(count, seed, 0) for seed in range(runs)])
    table = np.stack([np.bincount(column, minlength=count) for column in found.T])
    freedom = (count - 1) ** 2
    value = chi_square(table, runs / count)
    assert abs(value - freedom) < 5 * (2 * freedom) ** 0.5 + 1


def test_neighbors_in_an_epoch_are_any_two_examples():
    """All pairs (first, next) of 7 examples, over epochs of one seed."""
    count, epochs = 7, 1000
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


def test_a_position_alone_has_the_example_that_it_has_in_the_sequence():
    """Positions far apart and in no order change nothing."""
    count, seed = 13, 7
    sequence = order.locate(range(10 * count), count, seed)
    shuffled = np.random.default_rng(0).permutation(10 * count)[:40]
    np.testing.assert_array_equal(
        order.locate(shuffled, count, seed), sequence[shuffled]
    )
    assert order.locate([int(shuffled[0])], count, seed)[0] == sequence[shuffled[0]]
    assert order.locate([], count, seed).shape == (0,)
