"""Stops a run where nothing is lost when the machine is about to be taken away."""

import contextlib
import signal
import types
from collections.abc import Callable
from typing import TypeVar

from vt_flax.errors import UserError

Result = TypeVar("Result")


class Stopped(UserError):
    """The run was asked to stop, and what it had done is saved."""


class _AtOnce(BaseException):
    """Leaves what can be done again; no `except Exception` on the way is to take it."""


class StopSignal:
    """Takes SIGTERM, which schedulers and preempted machines send, as a request.

    A context manager. Inside, the signal ends nothing by itself: whoever asks
    `requested` between two steps can save first. Outside the main thread, where Python
    handles no signals, it changes nothing.
    """

    def __init__(self):
        self.requested = False
        self._at_once = False

    def __enter__(self) -> "StopSignal":
        with contextlib.suppress(ValueError):
            self._previous = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(self, *_) -> None:
        if hasattr(self, "_previous"):
            signal.signal(signal.SIGTERM, self._previous)

    def unless_requested(self, function: Callable[[], Result]) -> Result | None:
        """Calls a function, which the signal cuts off; None if it did.

        For what takes long and is made up for after a restart, such as an evaluation: a
        machine may be gone half a minute after its signal.
        """
        try:
            self._at_once = True
            return None if self.requested else function()
        except _AtOnce:
            return None
        finally:
            self._at_once = False

    def _handle(self, number: int, frame: types.FrameType | None) -> None:
        self.requested = True
        if self._at_once:
            self._at_once = False
            raise _AtOnce
