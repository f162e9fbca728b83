"""The training loop, from a prepared run to a trained workdir."""

import collections
import contextlib
import dataclasses
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TextIO

import jax

from vt_flax.data import augment
from vt_flax.data.batches import train_batches
from vt_flax.data.source import Source, cached
from vt_flax.data.split_check import check_splits
from vt_flax.errors import UserError
from vt_flax.parallel import processes
from vt_flax.parallel.mesh import batch_sharding, describe, local_indices, to_global
from vt_flax.paths import writing
from vt_flax.training.checkpoint import Checkpoints, Restored
from vt_flax.training.evaluation import evaluate
from vt_flax.training.formulation import choose_formulation
from vt_flax.training.logging import RunLogger
from vt_flax.training.progress import Progress
from vt_flax.training.requests import NONE, STOP, Requests, Stopped
from vt_flax.training.run import Run
from vt_flax.training.state import TrainState, weights_of
from vt_flax.training.step import compile_eval_step, compile_train_step
from vt_flax.training.teacher import find_teacher
from vt_flax.training.weights import initialize
from vt_flax.training.workdir import Results, RunRecord, check_resumable, locked


def train(run: Run, workdir: pathlib.Path, stream: TextIO | None = None) -> Results:
    """Trains a model, or resumes the run in `workdir`.

    Args:
      run: see `run.prepare`.
      workdir: folder of checkpoints, metrics and configuration; the same folder for all
        processes.
      stream: of process 0's progress lines; standard output by default.

    Returns:
      The results of the last evaluation.

    Raises:
      UserError: if the workdir holds another run, is in use, or is not shared by all
        processes; if no checkpoint can be restored, or one cannot be written; if the
        teacher does not fit; if a device does not compute what it should.
      Diverged: at the first step that is not finite; the last checkpoint stays.
      Stopped: after a SIGTERM, once the step that was under way is saved.
    """
    config, mesh, total = run.config, run.mesh, run.total_steps
    with (
        contextlib.ExitStack() as stack,
        processes.failing_together(),
        # The calling program may have enabled it.
        jax.enable_x64(False),
    ):
        # Setup: everything that can be rejected before the workdir changes.
        split_notes = check_splits(run.train_source, run.eval_source)
        teacher, teacher_variables, teacher_weights = find_teacher(config), None, ""
        if teacher:
            processes.report("reading the teacher")
            teacher_variables, teacher_weights = teacher.load(run.task, mesh)
        processes.report("checking the workdir")
        processes.check_shared(workdir)
        record = RunRecord.of(config, run.train_source, teacher_weights)
        changes = check_resumable(workdir, record)
        processes.report("checking what the devices compute")
        device_notes = augment.check_device(config.data, batch_sharding(mesh))
        examples = config.batch_size // mesh.size // config.grad_accum_steps
        size = run.task.input_size(config)
        choice = choose_formulation(run.model, size, mesh, examples, workdir)
        run = dataclasses.replace(run, model=choice.model)
        stack.enter_context(locked(workdir))

        # State: from the workdir, from `init_from`, or from scratch.
        checkpoints = Checkpoints(workdir, config.checkpoint.keep)
        stack.callback(checkpoints.close)
        start, origin = restore_or_initialize(run, checkpoints)
        state, step = start.state, int(start.state.step)

        # Workdir: from here on it is this run's.
        processes.gather("ready", step)
        best = None
        if config.checkpoint.keep_best:
            best = Checkpoints(workdir, config.checkpoint.keep_best, best=True)
            stack.callback(best.close)
        with writing(f"--workdir {workdir}"):
            if jax.process_index() == 0:
                record.write(workdir)
                choice.write(workdir)
            damaged = [
                f"warning: {error}: kept as {checkpoints.set_aside(damaged_step)}"
                for damaged_step, error in start.damaged.items()
            ]
        stream = stream or sys.stdout
        tensorboard = config.log.tensorboard
        logger = RunLogger(workdir, tensorboard=tensorboard, stream=stream, step=step)
        stack.callback(logger.close)
        logger.print(*(f"configuration changed: {line}" for line in changes))
        logger.print(*filter(None, [choice.line, *damaged, *origin]))
        if teacher:
            logger.print(f"distillation: teacher {teacher.folder}, {teacher_weights}")

        # Steps: compiled by their first calls.
        model, task = run.model, run.task
        train_step = compile_train_step(
            model, task, run.optimizer, run.schedule, config, mesh, state, teacher
        )
        eval_step = compile_eval_step(model, task, mesh)
        progress = Progress(run, logger, checkpoints, start.window)
        requests = stack.enter_context(Requests(mesh))
        # Any implicit transfer between host and devices is an error.
        stack.enter_context(jax.transfer_guard("disallow"))

        # Resume: an earlier process may have stopped before or in an evaluation.
        results: Results = {}
        if step and run.is_due("eval", step):
            results = _evaluate(run, eval_step, state, step, best, logger)
        if step == total:
            logger.print(
                f"nothing left to do: {workdir} is at step {total:,} of {total:,}"
            )
            return results

        # Loop.
        trace = stack.enter_context(contextlib.ExitStack())
        trace_end = config.profile.start + config.profile.steps - 1
        source = cached(run.train_source) if config.data.cache else run.train_source
        microbatches = config.grad_accum_steps
        split = f" in {microbatches} microbatches" if microbatches > 1 else ""
        logger.print(
            f"training steps {step:,} to {total:,}: {len(source):,} examples, batch "
            f"{config.batch_size}{split}, {describe(mesh)}"
        )
        notes = *device_notes, *source.notes, *run.eval_source.notes, *split_notes
        logger.print(*(f"note: {note}" for note in dict.fromkeys(notes)))
        batches = device_batches(run, source, step)
        stack.enter_context(contextlib.closing(batches))
        first, begin = step + 1, time.monotonic()
        saved_at = begin
        for step in range(first, total + 1):
            processes.report(f"step {step:,}: waiting for its examples")
            batch = next(batches)
            processes.report(f"step {step:,}: waiting for the devices")
            if config.profile.steps and step == config.profile.start:
                trace.enter_context(jax.profiler.trace(str(workdir / "profile")))
            state, metrics = train_step(
                state, batch | requests.batch(), teacher_variables
            )
            progress.add(step, metrics)
            if config.profile.steps and step == trace_end:
                jax.block_until_ready(metrics)
                trace.close()
            if step == first:
                jax.block_until_ready(metrics)
                progress.start_clock(step)
                logger.print(f"first step after {time.monotonic() - begin:.0f} s")

            save_is_due = run.is_due("checkpoint", step)
            eval_is_due = run.is_due("eval", step)
            if save_is_due or eval_is_due or progress.request != NONE:
                # Only a state that is known to be finite is saved. Its metrics may also
                # bring a new request.
                progress.fetch()
                request, progress.request = progress.request, NONE
                with progress.paused():
                    # Before an evaluation too: a process killed in it loses nothing.
                    processes.report(f"step {step:,}: saving")
                    checkpoints.save(step, state, progress.window)
                    saved_at = time.monotonic()
                    if request == STOP:
                        raise Stopped(
                            f"stopped by SIGTERM after step {step:,} of {total:,}, "
                            f"which is saved in {workdir}: run the same command to go "
                            "on"
                        )
                    if eval_is_due:
                        results = _evaluate(run, eval_step, state, step, best, logger)
            checkpoints.check()
            # Process 0's clock decides for all.
            minutes = (time.monotonic() - saved_at) / 60
            if jax.process_index() == 0 and 0 < config.checkpoint.minutes <= minutes:
                requests.save()
                saved_at = time.monotonic()
        return results


def restore_or_initialize(
    run: Run, checkpoints: Checkpoints
) -> tuple[Restored, list[str]]:
    """Returns the state that training starts from, and lines about its origin.

    Raises:
      UserError: if no checkpoint can be restored, `init_from` does not fit, or the run
        is beyond its duration already.
    """
    workdir, total = checkpoints.workdir, run.total_steps
    if not processes.broadcast("saved", checkpoints.steps()):
        processes.report("initializing the state")
        state, origin = run.initial_state(), []
        if run.config.init_from:
            state, lines = initialize(state, run.config.init_from)
            origin = [f"init_from: {line}" for line in lines]
        return Restored(state, []), origin
    processes.report("restoring a checkpoint")
    start = checkpoints.restore_newest(run.abstract_state())
    step = int(start.state.step)
    if step > total:
        raise UserError(
            f"{workdir} is at step {step:,} already, beyond the {total:,} of duration "
            f"{run.config.duration!r}"
        )
    return start, [f"resuming from step {step:,} of {total:,} in {workdir}"]


def device_batches(
    run: Run, source: Source, first: int
) -> Iterator[dict[str, jax.Array]]:
    """Yields global training batches, each sent to the devices two steps early."""
    batches = train_batches(
        source,
        run.config.data,
        seed=run.config.seed,
        batch=run.config.batch_size,
        first=first,
        last=run.total_steps,
        local_indices=local_indices(run.mesh, run.config.batch_size),
        # `source` may be a copy of this split in memory.
        decoder=run.task.decoder(run.train_source, train=True),
    )
    ahead: collections.deque = collections.deque()
    with contextlib.closing(batches):
        for batch in batches:
            ahead.append(to_global(batch, run.mesh))
            if len(ahead) > 2:
                yield ahead.popleft()
    yield from ahead


def _evaluate(
    run: Run,
    eval_step: Callable,
    state: TrainState,
    step: int,
    best: Checkpoints | None,
    logger: RunLogger,
) -> Results:
    """Evaluates a state, saves it if it is among the best, and logs the results."""
    results = evaluate(run, eval_step, weights_of(state))
    # Of the EMA, if there is one.
    metric = list(results.values())[-1][run.task.metric]
    if best and metric is not None:
        best.save_if_best(step, state, metric)
    flat = {f"{name}_{k}": v for name, r in results.items() for k, v in r.items()}
    logger.write(step, flat, "eval")
    summaries = (f"{name} {run.task.summary(r)}" for name, r in results.items())
    line = f"step {step:,}: {run.eval_source.name}: {', '.join(summaries)}"
    if skipped := next(iter(results.values()))["skipped"]:
        line += f"; {skipped} unreadable examples skipped"
    logger.print(line)
    return results
