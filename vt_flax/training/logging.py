"""What a run tells: a progress line, TensorBoard and metrics.jsonl."""

import datetime
import json
import pathlib
import time
from typing import Any, TextIO

import jax

METRICS_FILE = "metrics.jsonl"


class RunLogger:
    """Writes the metrics of a run. On any process but the first it writes nothing.

    Args:
      workdir: folder of the run.
      tensorboard: whether to write TensorBoard events too.
      stream: where the progress lines go.
    """

    def __init__(self, workdir: pathlib.Path, *, tensorboard: bool, stream: TextIO):
        first = jax.process_index() == 0
        self._stream = stream if first else None
        self._file = (workdir / METRICS_FILE).open("a") if first else None
        self._writer = None
        if first and tensorboard:
            import tensorboardX

            self._writer = tensorboardX.SummaryWriter(str(workdir / "tensorboard"))

    def write(self, step: int, metrics: dict[str, Any], kind: str) -> None:
        """Appends metrics.

        Args:
          step: updates made so far.
          metrics: numbers by name.
          kind: `train` or `eval`.
        """
        if self._file is not None:
            record = {"kind": kind, "step": step, **metrics}
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        if self._writer is not None:
            for name, value in metrics.items():
                self._writer.add_scalar(f"{kind}/{name}", value, step)

    def say(self, line: str) -> None:
        """Prints a line for the person who watches."""
        if self._stream is not None:
            print(line, file=self._stream, flush=True)

    def close(self) -> None:
        """Writes out what is held back."""
        if self._file is not None:
            self._file.close()
        if self._writer is not None:
            self._writer.close()


def read_metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the records of a run. Of a step that was repeated, the last ones."""
    file = workdir / METRICS_FILE
    if not file.exists():
        return []
    records = {}
    for line in file.read_text().splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            # A run that was killed may leave half a line behind.
            continue
        records[(record["kind"], record["step"])] = record
    return sorted(records.values(), key=lambda r: (r["step"], r["kind"] != "train"))


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
