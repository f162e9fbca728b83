"""Which example stands where in a run: a function of the seed and the step alone."""

import functools
import math
from collections.abc import Sequence

import numpy as np

# Of the permutation's Feistel network. Four make one that cannot be told from a random
# permutation if the round function is random (Luby and Rackoff, 1988); ours is a hash,
# and small splits have few values to hash. What is left is a parity: of a handful of
# examples, some orders come up a third more often than others.
ROUNDS = 12


def locate(rows: Sequence[int] | np.ndarray, count: int, seed: int) -> np.ndarray:
    """Returns the examples that stand at some rows of the run.

    The run is one endless sequence: a permutation of the split for each epoch, end to
    end. Nothing is shuffled or stored: the permutation is a Feistel network over
    side x side >= count values, keyed by seed and epoch, and walked on from values
    that are no example (Black and Rogaway, "Ciphers with Arbitrary Finite Domains",
    2002). So it costs a process what it reads, at any size of the split.

    Args:
      rows: rows from 0, in any epochs and any order.
      count: examples in the split.
      seed: the seed of the run's order; any integer.

    Returns:
      (rows,): indices of examples, int64.
    """
    rows = np.asarray(rows, np.int64)
    epochs, positions = np.divmod(rows, count)
    indices = np.empty_like(rows)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        indices[here] = permute(positions[here], count, seed, int(epoch))
    return indices


def permute(positions: np.ndarray, count: int, seed: int, epoch: int) -> np.ndarray:
    """Returns the examples at some positions, 0 to count - 1, of an epoch."""
    side = np.uint64(math.isqrt(count - 1) + 1)
    keys = _keys(seed, epoch)
    values = np.asarray(positions, np.int64).astype(np.uint64)
    astray = np.arange(len(values))
    while len(astray):
        left, right = np.divmod(values[astray], side)
        for key in keys:
            left, right = right, (left + _hash(right + key) % side) % side
        values[astray] = left * side + right
        # At most 2 * side - 1 of the values are no example: few walk on.
        astray = astray[values[astray] >= count]
    return values.astype(np.int64)


def own_part(batch: int, part: int = 0, parts: int = 1) -> np.ndarray:
    """Returns the rows of a batch that a process reads where it reads neighbours.

    Args:
      batch: examples in the global batch.
      part: which process.
      parts: number of processes; divides `batch`.
    """
    share = batch // parts
    return np.arange(part * share, (part + 1) * share)


@functools.lru_cache(maxsize=8)
def _keys(seed: int, epoch: int) -> np.ndarray:
    # The entropy is any sequence of integers from 0; the sign is one of its own.
    entropy = [abs(seed), int(seed < 0), epoch]
    return np.random.SeedSequence(entropy).generate_state(ROUNDS, np.uint64)


def _hash(values: np.ndarray) -> np.ndarray:
    """Mixes 64-bit words (the finaliser of splitmix64: Steele et al., 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
