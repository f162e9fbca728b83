"""A run under way: training steps, their metrics, saves and evaluations."""

import pathlib
import time
from collections.abc import Iterator
from typing import Any, NoReturn

import jax

from vt_flax.errors import UserError
from vt_flax.parallel import processes
from vt_flax.training.checkpoint import Checkpoints, Restored
from vt_flax.training.evaluation import evaluate
from vt_flax.training.logging import Clock, RunLogger, memory
from vt_flax.training.profiling import Profile
from vt_flax.training.requests import NONE, SAVE, STOP, Requests, Stopped
from vt_flax.training.run import Run
from vt_flax.training.state import weights_of
from vt_flax.training.step import compile_eval_step, compile_train_step
from vt_flax.training.workdir import Results, recorded_evaluation


class Diverged(UserError):
    """A loss, gradient or batch statistic is not a finite number."""

    status = 3
    everywhere = True


class Trainer:
    """A run under way: everything that changes from one step to the next.

    Attributes:
      state: the state after `step` updates.
      step: updates made.
      results: the last evaluation; empty before the first.
      requests: see `requests.Requests`.
    """

    def __init__(
        self,
        run: Run,
        workdir: pathlib.Path,
        start: Restored,
        checkpoints: Checkpoints,
        best: Checkpoints | None,
        logger: RunLogger,
    ):
        self._run, self._workdir, self._logger = run, workdir, logger
        self._checkpoints, self._best = checkpoints, best
        self.state, self.step = start.state, int(start.state.step)
        self.results: Results = {}
        self.requests = Requests(run.mesh)
        # Metrics of the steps since the last report.
        self._window = start.window
        # The newest step and its metrics, which the devices may still be computing.
        self._pending: tuple[int, dict[str, jax.Array]] | None = None
        # The highest request of any process that is not yet served.
        self._request = NONE
        self._clock = Clock(run.config.batch_size)
        self._saved_at = time.monotonic()
        self._evaluation_notes: set[str] = set()

    def compile(self, teacher: Any, teacher_variables: Any) -> None:
        """Compiles the training step and the evaluation step on their first calls."""
        run = self._run
        self._teacher_variables = teacher_variables
        self._train_step = compile_train_step(
            run.model,
            run.task,
            run.optimizer,
            run.schedule,
            run.config,
            run.mesh,
            self.state,
            teacher,
        )
        self._eval_step = compile_eval_step(run.model, run.task, run.mesh)

    def evaluate_resumed(self) -> bool:
        """Evaluates a resumed state if that is due and missing in metrics.jsonl.

        Returns:
          Whether there are steps left.
        """
        total = self._run.total_steps
        if self.step == total:
            self._logger.say(
                f"nothing left to do: {self._workdir} is at step {total:,} of {total:,}"
            )
        if self.step and self._is_due("eval"):
            recorded = recorded_evaluation(self._workdir, self.step)
            self.results = processes.broadcast("evaluated", recorded)
            if not self.results:
                with self.requests:
                    if not self._evaluate():
                        self._stop()
        return self.step < total

    def train(self, batches: Iterator[dict[str, jax.Array]], profile: Profile) -> None:
        """Trains until the last step."""
        total = self._run.total_steps
        first, begin = self.step, time.monotonic()
        self._saved_at = begin
        while self.step < total:
            processes.report(f"step {self.step + 1:,}: waiting for its examples")
            batch = next(batches)
            processes.report(f"step {self.step + 1:,}: waiting for the devices")
            profile.before(self.step + 1)
            metrics = self._make_step(batch)
            profile.after(self.step, metrics)
            if self.step == first + 1:
                jax.block_until_ready(metrics)
                self._clock.start(self.step)
                seconds = time.monotonic() - begin
                self._logger.say(f"first step after {seconds:.0f} s")
            if self._is_due("checkpoint", "eval") or self._request != NONE:
                self._save_and_evaluate()
            self._checkpoints.check()
            self._ask_for_timed_save()

    def _make_step(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Starts a step, and fetches the metrics of the previous one meanwhile."""
        self.state, metrics = self._train_step(
            self.state, batch | self.requests.batch(), self._teacher_variables
        )
        self._fetch_metrics()
        self.step += 1
        self._pending = self.step, metrics
        return metrics

    def _is_due(self, *sections: str) -> bool:
        """Returns whether an interval of a section, or the run, ends at this step."""
        every = self._run.every
        return self.step == self._run.total_steps or any(
            self.step % every[section] == 0 for section in sections
        )

    def _save_and_evaluate(self) -> None:
        # Only a state that is known to be finite is saved. Its metrics may also bring a
        # new request.
        self._fetch_metrics()
        with self._clock.paused():
            if self._is_due("checkpoint") or self._request == SAVE:
                self._save()
            if self._is_due("eval") and self._request != STOP and not self._evaluate():
                self._request = STOP
            if self._request == STOP:
                self._stop()
        self._request = NONE

    def _save(self) -> None:
        processes.report(f"step {self.step:,}: saving")
        begin = time.monotonic()
        self._checkpoints.save(self.step, self.state, self._window)
        self._saved_at = time.monotonic()
        seconds = self._saved_at - begin
        self._logger.write(self.step, {"blocked_seconds": seconds}, "checkpoint")

    def _stop(self) -> NoReturn:
        self._save()
        raise Stopped(
            f"stopped by SIGTERM after step {self.step:,} of "
            f"{self._run.total_steps:,}, which is saved in {self._workdir}: run the "
            "same command to go on"
        )

    def _ask_for_timed_save(self) -> None:
        """Requests a save after `checkpoint.minutes` by the clock of process 0."""
        minutes = (time.monotonic() - self._saved_at) / 60
        limit = self._run.config.checkpoint.minutes
        if jax.process_index() == 0 and 0 < limit <= minutes:
            self.requests.save()
            self._saved_at = time.monotonic()

    def _fetch_metrics(self) -> None:
        """Fetches pending metrics, checks them, and reports at a log interval's end.

        Raises:
          Diverged: if the step is not finite.
        """
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        values = {k: v.item() for k, v in jax.device_get(metrics).items()}
        self._request = max(self._request, values.pop("request"))
        if not values.pop("finite"):
            kept = "nothing had been saved yet"
            if steps := self._checkpoints.steps():
                kept = f"the checkpoint of step {steps[-1]:,} is kept"
            raise Diverged(
                f"step {step:,} is not finite (loss {values['loss']}, gradient norm "
                f"{values['grad_norm']}): {kept}; lower schedule.learning_rate or set "
                "optimizer.clip_norm"
            )
        self._window.append(values)
        if step % self._run.every["log"] == 0 or step == self._run.total_steps:
            self._report(step)

    def _report(self, step: int) -> None:
        """Writes and prints the means of the metrics since the last report."""
        run, window = self._run, self._window
        # A checkpoint may come from a configuration with other metrics.
        keys = [k for k in window[-1] if all(k in values for values in window)]
        mean = {k: sum(v[k] for v in window) / len(window) for k in keys}
        mean["learning_rate"] = window[-1]["learning_rate"]
        mean["skipped"] = sum(values["skipped"] for values in window)
        mean["epoch"] = step * run.config.batch_size / len(run.train_source)
        window.clear()
        speed = self._clock.lap(step)
        if speed is not None:
            mean["images_per_second"] = speed
        self._logger.write(step, mean | memory(), "train")
        metric = run.task.train_metric
        parts = [
            f"step {step:,}/{run.total_steps:,} ({step / run.total_steps:.1%}) epoch "
            f"{mean['epoch']:.2f}: loss {mean['loss']:.4f}",
            f"{run.task.titles[metric]} {100 * mean[metric]:.1f} %",
            f"learning rate {mean['learning_rate']:.3g}",
        ]
        if speed is not None:
            parts.append(f"{speed:,.0f} images/s")
        if mean["skipped"]:
            parts.append(f"{mean['skipped']} unreadable examples skipped")
        parts.append(f"ETA {self._clock.remaining(run.total_steps - step)}")
        self._logger.say(", ".join(parts))

    def _evaluate(self) -> bool:
        """Evaluates the state; returns False if a stop request ended it early."""
        run, source = self._run, self._run.eval_source
        found = evaluate(run, self._eval_step, weights_of(self.state), self.requests)
        if found is None:
            return False
        self.results = results = found.results
        # Of the EMA, if there is one. Saved before the evaluation is recorded: a
        # resumed run does not repeat a recorded one.
        metric = list(results.values())[-1][run.task.metric]
        if self._best and metric is not None:
            self._best.save_if_best(self.step, self.state, metric)
        self._logger.write(
            self.step,
            {f"{name}_{k}": v for name, r in results.items() for k, v in r.items()},
            "eval",
        )
        line = ", ".join(
            f"{name} {run.task.summary(result)}" for name, result in results.items()
        )
        skipped = next(iter(results.values()))["skipped"]
        if skipped:
            line += f"; {skipped} unreadable examples skipped"
        self._logger.say(f"step {self.step:,}: {source.name}: {line}")
        new = [note for note in found.notes if note not in self._evaluation_notes]
        self._evaluation_notes.update(new)
        self._logger.say_all(f"note: {source.name}: {note}" for note in new)
        return True
