"""A trace of some steps, for TensorBoard's profiler or xprof."""

import pathlib

import jax
from ml_collections import ConfigDict


class Profile:
    """Traces what host and devices do in some steps, to `profile` in the workdir.

    A context manager, for the trace is to be ended whatever ends the run.

    Args:
      config: the section `profile`: `start`, the first step, and `steps`, how many.
      workdir: folder of the run. Every process writes a file of its own.
    """

    def __init__(self, config: ConfigDict, workdir: pathlib.Path):
        self._first, self._steps = config.start, config.steps
        self._folder = workdir / "profile"
        self._tracing = False

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_) -> None:
        self._end()

    def before(self, step: int) -> None:
        """To be called before each step."""
        if self._steps and step == self._first:
            jax.profiler.start_trace(str(self._folder))
            self._tracing = True

    def after(self, step: int, result: jax.Array) -> None:
        """To be called after each step, with something that it computes."""
        if self._tracing and step >= self._first + self._steps - 1:
            jax.block_until_ready(result)
            self._end()

    def _end(self) -> None:
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()
