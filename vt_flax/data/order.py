"""Order of the examples: a function of the seed and the step alone.

A run is one endless sequence of examples, a permutation of the split for each epoch.
Step k takes positions k * batch to (k + 1) * batch of it, whatever the number of
processes, so that resuming needs the step and no state of an iterator.
"""

import functools
import math
from collections.abc import Iterator, Sequence

import numpy as np

# Rounds of the permutation's Feistel network. Four make one that cannot be told from a
# random permutation if the round function is random (Luby and Rackoff, 1988); ours is a
# hash, and small splits have few values to hash. What is left is a parity: of a handful
# of examples, some orders come up a third more often than others.
ROUNDS = 12


def steps(
    batch: int,
    local_indices: np.ndarray,
    first: int,
    last: int,
    count: int,
    seed: int | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields which examples one process reads in each step.

    Args:
      batch: examples in the global batch.
      local_indices: indices in the global batch of this process's examples, ascending.
      first: first step.
      last: step before which to end.
      count: examples in the split.
      seed: seed of the shuffled epochs; None reads every example once, in stored order.

    Yields:
      Positions in the run, and indices in the split of the same examples. After the end
      of a single pass there are fewer than `local_indices`, or none.
    """
    for step in range(first, last):
        positions = step * batch + local_indices
        if seed is None:
            positions = positions[positions < count]
            yield positions, positions
        else:
            yield positions, locate(positions, count, seed)


def locate(positions: Sequence[int] | np.ndarray, count: int, seed: int) -> np.ndarray:
    """Returns which examples of a split are at some positions of a run.

    Nothing is shuffled or stored: the permutation is a Feistel network over side x side
    >= count values, keyed by seed and epoch, and applied again to values that are not
    below `count` (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002).

    Args:
      positions: positions in the run from 0, in any epochs and any order.
      count: examples in the split.
      seed: seed of the run's order; any integer.

    Returns:
      (positions,): indices of examples, int64.
    """
    positions = np.asarray(positions, np.int64)
    epochs, within = np.divmod(positions, count)
    indices = np.empty_like(positions)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        indices[here] = permute(within[here], count, seed, int(epoch))
    return indices


def permute(positions: np.ndarray, count: int, seed: int, epoch: int) -> np.ndarray:
    """Returns the examples at some positions, 0 to count - 1, of an epoch."""
    side = np.uint64(math.isqrt(count - 1) + 1)
    keys = _keys(seed, epoch)
    values = np.asarray(positions, np.int64).astype(np.uint64)
    outside = np.arange(len(values))
    while len(outside):
        left, right = np.divmod(values[outside], side)
        for key in keys:
            left, right = right, (left + _hash(right + key) % side) % side
        values[outside] = left * side + right
        # Few: at most 2 * side - 1 of all values are not below `count`.
        outside = outside[values[outside] >= count]
    return values.astype(np.int64)


def local_block(
    batch: int, process_index: int = 0, process_count: int = 1
) -> np.ndarray:
    """Returns the indices in a batch of a process that reads a contiguous block."""
    local = batch // process_count
    return np.arange(process_index * local, (process_index + 1) * local)


@functools.lru_cache(maxsize=8)
def _keys(seed: int, epoch: int) -> np.ndarray:
    # The entropy is any sequence of integers from 0; the sign is one of its own.
    entropy = [abs(seed), int(seed < 0), epoch]
    return np.random.SeedSequence(entropy).generate_state(ROUNDS, np.uint64)


def _hash(values: np.ndarray) -> np.ndarray:
    """Mixes 64-bit words (the finalizer of splitmix64: Steele et al., 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
