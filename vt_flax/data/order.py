"""Which example stands where in a run: a function of the seed and the step alone."""

import functools

import numpy as np


@functools.lru_cache(maxsize=4)
def permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    """Returns the order of `count` examples in an epoch (int64, read-only)."""
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    order = generator.permutation(count)
    order.setflags(write=False)
    return order


def training_rows(step: int, batch: int, part: int = 0, parts: int = 1) -> range:
    """Returns the rows of the run that a process reads for a training step.

    Global batch k is rows k * batch to (k + 1) * batch of one endless sequence, the
    epochs' permutations end to end; part p of a batch is its p-th run of rows. So the
    order does not depend on the number of processes, and a resumed run needs its step
    alone.

    Args:
      step: the step, from 0.
      batch: examples in the global batch.
      part: which process.
      parts: number of processes; divides `batch`.
    """
    share = batch // parts
    start = step * batch + part * share
    return range(start, start + share)


def locate(row: int, count: int, seed: int) -> int:
    """Returns the example that stands at a row of the run.

    Args:
      row: row from 0, in any epoch.
      count: examples in the split.
      seed: the seed of the run's order.
    """
    epoch, position = divmod(row, count)
    return int(permutation(count, seed, epoch)[position])
