"""Metrics of training steps: fetched a step late, checked, and logged as means."""

import contextlib
import datetime
import time
from collections.abc import Iterator

import jax

from vt_flax.errors import UserError
from vt_flax.training.checkpoint import Checkpoints, Window
from vt_flax.training.logging import RunLogger
from vt_flax.training.requests import NONE
from vt_flax.training.run import Run


class Diverged(UserError):
    """A loss, gradient or batch statistic is not a finite number."""

    status = 3
    everywhere = True


class Progress:
    """Metrics of the training steps, and the speed of training.

    Args:
      run: see `run.prepare`.
      logger: destination of the means.
      checkpoints: of the run, for the message of a run that diverges.
      window: metrics of the steps that an earlier process did not log yet.

    Attributes:
      window: metrics of the steps since the last progress line.
      request: highest request in the metrics; the loop resets it when it is served.
    """

    def __init__(
        self, run: Run, logger: RunLogger, checkpoints: Checkpoints, window: Window
    ):
        self._run, self._logger, self._checkpoints = run, logger, checkpoints
        self.window, self.request = window, NONE
        self._pending: tuple[int, dict[str, jax.Array]] | None = None
        # Time and step that the speed is measured from.
        self._mark: tuple[float, int] | None = None

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Takes the metrics of a started step, and fetches those of the step before.

        The devices compute the new step meanwhile. Errors are those of `fetch`.
        """
        self.fetch()
        self._pending = step, metrics

    def fetch(self) -> None:
        """Waits for the newest step, checks it, and logs at an interval's end.

        Raises:
          Diverged: if the step is not finite.
        """
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        values = {k: v.item() for k, v in jax.device_get(metrics).items()}
        self.request = max(self.request, values.pop("request"))
        if not values.pop("finite"):
            kept = "nothing had been saved yet"
            if steps := self._checkpoints.steps():
                kept = f"the checkpoint of step {steps[-1]:,} is kept"
            raise Diverged(
                f"step {step:,} is not finite (loss {values['loss']}, gradient norm "
                f"{values['grad_norm']}): {kept}; lower schedule.learning_rate or set "
                "optimizer.clip_norm"
            )
        self.window.append(values)
        if self._run.is_due("log", step):
            self._log(step)

    def start_clock(self, step: int) -> None:
        """Starts to measure the speed, after the first step has been compiled."""
        self._mark = time.monotonic(), step

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time of an evaluation or a save out of the speed."""
        begin = time.monotonic()
        yield
        if self._mark:
            marked, step = self._mark
            self._mark = marked + time.monotonic() - begin, step

    def _log(self, step: int) -> None:
        """Writes and prints the means of the metrics since the last progress line."""
        run, window = self._run, self.window
        # A checkpoint may come from a configuration with other metrics.
        keys = [k for k in window[-1] if all(k in values for values in window)]
        mean = {k: sum(v[k] for v in window) / len(window) for k in keys}
        mean["learning_rate"] = window[-1]["learning_rate"]
        mean["skipped"] = sum(values["skipped"] for values in window)
        mean["epoch"] = step * run.config.batch_size / len(run.train_source)
        window.clear()
        metric = run.task.train_metric
        items = [
            f"step {step:,}/{run.total_steps:,} ({step / run.total_steps:.1%}) epoch "
            f"{mean['epoch']:.2f}: loss {mean['loss']:.4f}",
            f"{run.task.titles[metric]} {100 * mean[metric]:.1f} %",
            f"learning rate {mean['learning_rate']:.3g}",
        ]
        eta = "-"
        if self._mark and step > self._mark[1]:
            now = time.monotonic()
            seconds = (now - self._mark[0]) / (step - self._mark[1])
            self._mark = now, step
            mean["images_per_second"] = run.config.batch_size / seconds
            items.append(f"{mean['images_per_second']:,.0f} images/s")
            left = round(seconds * (run.total_steps - step))
            eta = str(datetime.timedelta(seconds=left))
        if mean["skipped"]:
            items.append(f"{mean['skipped']} unreadable examples skipped")
        self._logger.write(step, mean, "train")
        self._logger.print(", ".join([*items, f"ETA {eta}"]))
