"""Requests of one process that make all processes save, or stop, after the same step.

A request is a field of the next batch: each device holds its process's, and the step
returns the maximum to every process. This needs no barrier.
"""

import contextlib
import signal
import types

import jax
import numpy as np
from jax.sharding import Mesh

from vt_flax.errors import UserError
from vt_flax.parallel.mesh import to_global

NONE, SAVE, STOP = 0, 1, 2


class Stopped(UserError):
    """SIGTERM stopped the run, and its state is saved."""

    status = 4
    label = ""
    everywhere = True


class Requests:
    """Requests of this process; a context manager in which SIGTERM requests a stop.

    Outside the main thread, where Python handles no signals, SIGTERM keeps its action.
    """

    def __init__(self, mesh: Mesh):
        self._stop = self._save = False
        ones = np.ones(len(mesh.local_devices), np.int32)
        self._arrays = to_global({k: k * ones for k in (NONE, SAVE, STOP)}, mesh)

    def __enter__(self) -> "Requests":
        with contextlib.suppress(ValueError):
            self._previous = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(self, *_) -> None:
        if hasattr(self, "_previous"):
            signal.signal(signal.SIGTERM, self._previous)

    def save(self) -> None:
        """Requests a save after the next step, by all processes."""
        self._save = True

    def batch(self) -> dict[str, jax.Array]:
        """Returns a field of the next batch: `request`, int32 (devices,)."""
        kind = STOP if self._stop else SAVE if self._save else NONE
        self._save = False
        return {"request": self._arrays[kind]}

    def _handle(self, number: int, frame: types.FrameType | None) -> None:
        self._stop = True
