"""What one process asks of all: to save, or to stop.

A signal reaches one process, at any moment; but all have to save, or stop, after the
same step, or they wait for each other for ever. So a request travels with the next
batch: each device gets its process's, the step returns the greatest, and every process
reads the same answer a step later. It costs no meeting, and is the same for one
process as for hundreds.
"""

import contextlib
import os
import signal
import threading
import types
import urllib.request

import jax
import numpy as np
from jax.sharding import Mesh

from vt_flax.errors import UserError
from vt_flax.parallel.mesh import to_global

NONE, SAVE, STOP = 0, 1, 2

# Where Google Cloud tells a machine that it is about to be taken away.
# https://cloud.google.com/compute/docs/instances/create-use-spot#detect-preemption
METADATA = "http://metadata.google.internal/computeMetadata/v1/instance"
NOTICES = {
    "preempted": ("TRUE",),
    "maintenance-event": (
        "TERMINATE_ON_HOST_MAINTENANCE",
        "MIGRATE_ON_HOST_MAINTENANCE",
    ),
}


class Stopped(UserError):
    """The run was asked to stop, and what it had done is saved."""

    status = 4
    label = ""
    everywhere = True


class Requests:
    """This process's requests. A context manager, inside which SIGTERM is one.

    SIGTERM is what schedulers send, and machines that shut down. Outside the main
    thread, where Python handles no signals, it is left alone.

    Args:
      mesh: the devices.
    """

    def __init__(self, mesh: Mesh):
        self.mesh = mesh
        # What stays: to stop. What is asked once: to save.
        self._stop = self._save = False
        self._arrays = {asked: self._array(asked) for asked in (NONE, SAVE, STOP)}

    def __enter__(self) -> "Requests":
        with contextlib.suppress(ValueError):
            self._previous = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(self, *_) -> None:
        if hasattr(self, "_previous"):
            signal.signal(signal.SIGTERM, self._previous)

    def save(self) -> None:
        """Asks all processes to save."""
        self._save = True

    def batch(self) -> dict[str, jax.Array]:
        """Returns what to add to the next batch, for `answer` of what it returns.

        `request`, int32 (devices,), one for each device.
        """
        asked = STOP if self._stop else SAVE if self._save else NONE
        self._save = False
        return {"request": self._arrays[asked]}

    def _array(self, asked: int) -> jax.Array:
        own = len(self.mesh.local_devices)
        return to_global({"": np.full(own, asked, np.int32)}, self.mesh)[""]

    def _handle(self, number: int, frame: types.FrameType | None) -> None:
        self._stop = True


def heed_notices(metadata: str = METADATA, seconds: float = 5.0) -> None:
    """Makes a SIGTERM of a notice that this machine will be preempted or maintained.

    On Google Cloud the notice comes before the shutdown that sends SIGTERM, if anything
    does. Elsewhere there is no such server, and nothing happens.

    Args:
      metadata: address of the machine's metadata.
      seconds: between two looks.
    """

    def watch() -> None:
        wait = threading.Event()
        while True:
            for name, values in NOTICES.items():
                request = urllib.request.Request(
                    f"{metadata}/{name}", headers={"Metadata-Flavor": "Google"}
                )
                try:
                    with urllib.request.urlopen(request, timeout=5) as answer:
                        value = answer.read().decode().strip()
                except OSError:
                    continue  # the server may be away for a while
                if value in values:
                    os.kill(os.getpid(), signal.SIGTERM)
                    return
            wait.wait(seconds)

    threading.Thread(target=watch, name="vt_flax-notices", daemon=True).start()
