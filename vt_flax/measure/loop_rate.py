"""The rate of the training loop: steps, and the input that they wait for."""

import collections
import contextlib
import dataclasses
import time

import jax

from vt_flax.data.source import cached
from vt_flax.plan.step import Step
from vt_flax.training.loop import device_batches
from vt_flax.training.requests import Requests
from vt_flax.training.run import Run


def loop_times(run: Run, step: Step, rounds: int, steps: int) -> list[float]:
    """Times steps on the examples of a run, which come from storage as in training.

    Neither evaluations nor checkpoints are in it.

    Args:
      run: see `run.prepare`.
      step: a started step of the run's configuration.
      rounds: how many times are taken.
      steps: of which each is the mean.

    Returns:
      Seconds a step, of each round.
    """
    # However short the training is.
    run = dataclasses.replace(run, total_steps=10**9)
    source = run.train_source
    if run.config.data.cache:
        source = cached(source)
    requests = Requests(run.mesh)
    held: collections.deque = collections.deque()
    times = []
    with contextlib.closing(device_batches(run, source, 0)) as batches:

        def advance() -> None:
            held.append(step.advance(next(batches) | requests.batch()))
            # As in training, a step late.
            if len(held) > 1:
                jax.device_get(held.popleft())

        # What had been read before the first step seems to take no time.
        for _ in range(run.config.data.prefetch + 3):
            advance()
        for _ in range(rounds):
            begin = time.perf_counter()
            for _ in range(steps):
                advance()
            times.append((time.perf_counter() - begin) / steps)
    return times
