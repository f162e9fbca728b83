"""Order of the examples: a function of the seed and the step alone.

A run is one endless sequence of examples, a permutation of the split for each epoch.
Step k takes positions k * batch to (k + 1) * batch of it, whatever the number of
processes, so that a restart needs the step and no state of an iterator.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence

import numpy as np

# Rounds of the permutation's Feistel network. Four make one that cannot be told from a
# random permutation if the round function is random (Luby and Rackoff, 1988); ours is a
# hash, and small splits have few values to hash. What is left is a parity: of a handful
# of examples, some orders come up a third more often than others.
ROUNDS = 12


@dataclasses.dataclass(frozen=True)
class Order:
    """The examples that one process reads, step by step.

    Attributes:
      batch: examples in the global batch.
      local_indices: (local batch,), examples of a global batch that this process reads,
        ascending.
      first: first step.
      last: step before which to end.
      count: examples in the split.
      seed: seed of the shuffled epochs; None for every example once, as it is stored.
    """

    batch: int
    local_indices: np.ndarray
    first: int
    last: int
    count: int
    seed: int | None = None

    @property
    def length(self) -> int:
        """The number of examples that this process reads, with those beyond the end."""
        return (self.last - self.first) * len(self.local_indices)

    def positions(self, start: int, stop: int) -> np.ndarray:
        """Returns the positions in the run of this process's examples start to stop."""
        offsets = np.arange(start, min(stop, self.length))
        steps, within = np.divmod(offsets, len(self.local_indices))
        return (self.first + steps) * self.batch + self.local_indices[within]

    def steps(self) -> Iterator[np.ndarray]:
        """Yields the positions (local batch,) of each step."""
        size = len(self.local_indices)
        for start in range(0, self.length, size):
            yield self.positions(start, start + size)

    def exist(self, positions: np.ndarray) -> np.ndarray:
        """Returns which positions have an example: not those after a single pass."""
        return (positions < self.count) | (self.seed is not None)

    def indices(self, positions: np.ndarray) -> np.ndarray:
        """Returns which examples of the split are at some positions of the run."""
        if self.seed is None:
            return positions
        return locate(positions, self.count, self.seed)


def locate(positions: Sequence[int] | np.ndarray, count: int, seed: int) -> np.ndarray:
    """Returns which examples of a split are at some positions of a run.

    Nothing is shuffled or stored: the permutation is a Feistel network over
    side x side >= count values, keyed by seed and epoch, and walked on from values
    that are no example (Black and Rogaway, "Ciphers with Arbitrary Finite Domains",
    2002). Its cost does not depend on the size of the split.

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
        # At most 2 * side - 1 of the values are no example: few walk on.
        outside = outside[values[outside] >= count]
    return values.astype(np.int64)


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
