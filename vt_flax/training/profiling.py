"""A trace of some steps, for TensorBoard's profiler or xprof."""

import pathlib

import jax
from ml_collections import ConfigDict


class Profile:
    """Traces some steps to `profile` in the workdir, each process to its own file.

    A context manager, which ends a trace that is under way.

    Args:
      config: the section `profile`: `start`, the first step, and `steps`, how many.
      workdir: folder of the run.
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
        """Starts the trace before its first step."""
        if self._steps and step == self._first:
            jax.profiler.start_trace(str(self._folder))
            self._tracing = True

    def after(self, step: int, result: jax.Array) -> None:
        """Ends the trace after its last step, once `result` is computed."""
        if self._tracing and step >= self._first + self._steps - 1:
            jax.block_until_ready(result)
            self._end()

    def _end(self) -> None:
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()
