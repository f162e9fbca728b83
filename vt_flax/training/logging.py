"""Progress lines, TensorBoard events and metrics.jsonl of a run."""

import contextlib
import datetime
import json
import pathlib
import time
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

import jax
import psutil

from vt_flax.errors import UserError
from vt_flax.training.workdir import METRICS_FILE


class RunLogger:
    """Writes the metrics of a run. On any process but the first it writes nothing.

    Args:
      workdir: folder of the run.
      tensorboard: whether to write TensorBoard events too.
      stream: where the progress lines go.
      step: the run goes on from; what TensorBoard shows of later ones is repeated.

    Raises:
      UserError: if the workdir cannot be written to.
    """

    def __init__(
        self, workdir: pathlib.Path, *, tensorboard: bool, stream: TextIO, step: int = 0
    ):
        first = jax.process_index() == 0
        self._stream = stream if first else None
        self._file = _open_to_append(workdir / METRICS_FILE) if first else None
        self._writer = None
        if first and tensorboard:
            import tensorboardX

            self._writer = tensorboardX.SummaryWriter(
                str(workdir / "tensorboard"), purge_step=step + 1 if step else None
            )

    def write(self, step: int, metrics: dict[str, Any], kind: str) -> None:
        """Appends metrics.

        Args:
          step: updates made so far.
          metrics: numbers by name; None where there is none, as of an absent class.
          kind: `train`, `eval` or `checkpoint`.

        Raises:
          UserError: if they cannot be written, as to a full disk.
        """
        if self._file is not None:
            record = {"kind": kind, "step": step, **metrics}
            with _clear_errors(self._file.name):
                self._file.write(json.dumps(record) + "\n")
                self._file.flush()
        if self._writer is not None:
            for name, value in metrics.items():
                if value is not None:
                    self._writer.add_scalar(f"{kind}/{name}", value, step)

    def say(self, line: str) -> None:
        """Prints a line for the person who watches."""
        if self._stream is not None:
            print(line, file=self._stream, flush=True)

    def say_all(self, lines: Iterable[str]) -> None:
        """Prints lines; see `say`."""
        for line in lines:
            self.say(line)

    def close(self) -> None:
        """Writes out what is buffered."""
        if self._file is not None:
            # What a full disk has refused is tried, and refused, again.
            with contextlib.suppress(OSError):
                self._file.close()
        if self._writer is not None:
            self._writer.close()


def _open_to_append(file: pathlib.Path) -> TextIO:
    with _clear_errors(file):
        # A run that was killed may have left half a line, which is not to swallow the
        # next one.
        half = file.exists() and file.read_bytes()[-1:] not in (b"", b"\n")
        stream = file.open("a")
        if half:
            stream.write("\n")
        return stream


@contextlib.contextmanager
def _clear_errors(file: pathlib.Path | str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{file}: {error.strerror or error}") from error


def memory() -> dict[str, int]:
    """Returns the memory in use, in bytes: the host process's, and a device's.

    `device_memory` is of this process's fullest device, and `device_memory_peak` the
    most that it has had; absent where devices do not tell, as CPUs.
    """
    found = {"host_memory": psutil.Process().memory_info().rss}
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    for name, key in (("", "bytes_in_use"), ("_peak", "peak_bytes_in_use")):
        values = [s[key] for s in stats if key in s]
        if values:
            found[f"device_memory{name}"] = max(values)
    return found


class Clock:
    """Measures the rate of training, evaluation and compilation left out.

    Args:
      batch: images in a step.
    """

    def __init__(self, batch: int):
        self._batch = batch
        self._mark: tuple[float, int] | None = None
        self._pause: float | None = None
        self._step_seconds: float | None = None

    def start(self, step: int) -> None:
        """Starts measuring after the first step, which compiled the program."""
        self._mark = (time.monotonic(), step)

    def pause(self) -> None:
        """Stops the clock, for an evaluation or a save."""
        self._pause = time.monotonic()

    def resume(self) -> None:
        """Lets the clock go on."""
        if self._pause is not None and self._mark is not None:
            paused = time.monotonic() - self._pause
            self._mark = (self._mark[0] + paused, self._mark[1])
        self._pause = None

    def lap(self, step: int) -> float | None:
        """Returns images a second since the last lap, if any step was measured."""
        if self._mark is None or step <= self._mark[1]:
            return None
        now = time.monotonic()
        self._step_seconds = (now - self._mark[0]) / (step - self._mark[1])
        self._mark = (now, step)
        return self._batch / self._step_seconds

    def remaining(self, steps: int) -> str:
        """Returns the time that more steps will take, h:mm:ss, evaluation left out."""
        if self._step_seconds is None:
            return "-"
        return str(datetime.timedelta(seconds=round(steps * self._step_seconds)))
