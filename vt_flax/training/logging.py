"""Progress lines, TensorBoard events and metrics.jsonl of a run."""

import contextlib
import json
import pathlib
from typing import Any, TextIO

import jax

from vt_flax.paths import writing
from vt_flax.training.workdir import METRICS_FILE


class RunLogger:
    """Writes the metrics and progress lines of a run, on process 0 alone.

    Args:
      workdir: folder of the run.
      tensorboard: whether to write TensorBoard events too.
      stream: destination of the progress lines.
      step: step that the run resumes from; TensorBoard drops later ones.

    Raises:
      UserError: if the workdir cannot be written to.
    """

    def __init__(
        self, workdir: pathlib.Path, *, tensorboard: bool, stream: TextIO, step: int = 0
    ):
        self._stream = self._file = self._writer = None
        if jax.process_index():
            return
        self._stream, self._file = stream, _open_to_append(workdir / METRICS_FILE)
        if tensorboard:
            import tensorboardX

            self._writer = tensorboardX.SummaryWriter(
                str(workdir / "tensorboard"), purge_step=step + 1 if step else None
            )

    def write(self, step: int, metrics: dict[str, Any], kind: str) -> None:
        """Appends metrics.

        Args:
          step: updates made so far.
          metrics: numbers by name; None where undefined, as for an absent class.
          kind: `train` or `eval`.

        Raises:
          UserError: if they cannot be written, as to a full disk.
        """
        if self._file is not None:
            record = {"kind": kind, "step": step, **metrics}
            with writing(self._file.name):
                self._file.write(json.dumps(record) + "\n")
                self._file.flush()
        if self._writer is not None:
            for name, value in metrics.items():
                if value is not None:
                    self._writer.add_scalar(f"{kind}/{name}", value, step)

    def print(self, *lines: str) -> None:
        """Prints progress lines."""
        if self._stream is not None:
            for line in lines:
                print(line, file=self._stream, flush=True)

    def close(self) -> None:
        """Writes out what is buffered."""
        if self._file is not None:
            # A full disk has raised before, in `write`.
            with contextlib.suppress(OSError):
                self._file.close()
        if self._writer is not None:
            self._writer.close()


def _open_to_append(file: pathlib.Path) -> TextIO:
    with writing(file):
        # A killed run may have left half a line.
        half = file.exists() and file.read_bytes()[-1:] not in (b"", b"\n")
        stream = file.open("a")
        if half:
            stream.write("\n")
        return stream
