"""The training loop, from a prepared run to a trained workdir."""

import collections
import contextlib
import dataclasses
import pathlib
import sys
from collections.abc import Iterator
from typing import TextIO

import jax

from vt_flax.data import augment
from vt_flax.data.batches import train_batches
from vt_flax.data.source import Source, cached
from vt_flax.data.split_check import check_splits
from vt_flax.errors import UserError
from vt_flax.parallel import processes
from vt_flax.parallel.agreement import check_shared
from vt_flax.parallel.mesh import batch_sharding, describe, own_rows, to_global
from vt_flax.paths import writing
from vt_flax.training.checkpoint import Checkpoints, Restored
from vt_flax.training.formulation import Choice, choose_formulation
from vt_flax.training.logging import RunLogger
from vt_flax.training.profiling import Profile
from vt_flax.training.run import Run
from vt_flax.training.teacher import find_teacher
from vt_flax.training.trainer import Trainer
from vt_flax.training.weights import initialize
from vt_flax.training.workdir import (
    Results,
    RunRecord,
    check_resumable,
    locked,
)


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
    config = run.config
    with (
        contextlib.ExitStack() as stack,
        processes.failing_together(),
        # The calling program may have enabled it.
        jax.enable_x64(False),
    ):
        # Setup: everything that can be rejected before the workdir changes.
        notes = check_splits(run.train_source, run.eval_source)
        teacher, teacher_variables, teacher_weights = find_teacher(config), None, ""
        if teacher:
            processes.report("reading the teacher")
            teacher_variables, teacher_weights = teacher.load(run.task, run.mesh)
        processes.report("checking the workdir")
        check_shared(workdir)
        record = RunRecord.of(config, run.train_source, teacher_weights)
        changes = check_resumable(workdir, record)
        run, choice, device_notes = check_devices(run, workdir)
        stack.enter_context(locked(workdir))

        # State: from the workdir, from `init_from`, or from scratch.
        checkpoints = Checkpoints(workdir, config.checkpoint.keep)
        stack.callback(checkpoints.close)
        start, origin = first_state(run, checkpoints)

        # Record: from here on the workdir is this run's.
        processes.gather("ready", int(start.state.step))
        best = None
        if config.checkpoint.keep_best:
            best = Checkpoints(workdir, config.checkpoint.keep_best, best=True)
            stack.callback(best.close)
        with writing(f"--workdir {workdir}"):
            if jax.process_index() == 0:
                record.write(workdir)
                choice.write(workdir)
            damaged = [
                f"warning: {error}: kept as {checkpoints.set_aside(step)}"
                for step, error in start.damaged.items()
            ]
        logger = RunLogger(
            workdir,
            tensorboard=config.log.tensorboard,
            stream=stream or sys.stdout,
            step=int(start.state.step),
        )
        stack.callback(logger.close)
        logger.say_all(f"configuration changed: {line}" for line in changes)
        logger.say_all(filter(None, [choice.line, *damaged, *origin]))
        if teacher:
            logger.say(f"distillation: taught by {teacher.folder}, {teacher_weights}")

        # Compile: one program for a training step, one for an evaluation step.
        trainer = Trainer(run, workdir, start, checkpoints, best, logger)
        trainer.compile(teacher, teacher_variables)

        # Loop, after the evaluation that the resumed step may lack.
        if not trainer.evaluate_resumed():
            return trainer.results
        source = cached(run.train_source) if config.data.cache else run.train_source
        microbatches = config.grad_accum_steps
        split = f" in {microbatches} microbatches" if microbatches > 1 else ""
        logger.say(
            f"training steps {trainer.step:,} to {run.total_steps:,}: "
            f"{len(source):,} examples, batch {config.batch_size}{split}, "
            f"{describe(run.mesh)}"
        )
        notes = [*device_notes, *source.notes, *run.eval_source.notes, *notes]
        # Two slices of one folder may have the same notes.
        logger.say_all(f"note: {note}" for note in dict.fromkeys(notes))
        batches = device_batches(run, source, trainer.step)
        with (
            contextlib.closing(batches),
            Profile(config.profile, workdir) as profile,
            trainer.requests,
            # Any implicit transfer between host and devices is an error.
            jax.transfer_guard("disallow"),
        ):
            trainer.train(batches, profile)
        return trainer.results


def check_devices(run: Run, workdir: pathlib.Path) -> tuple[Run, Choice, list[str]]:
    """Chooses the formulation, and checks what the devices compute.

    Returns:
      The run with the chosen formulation, the choice, and notes to print.
    """
    config, mesh = run.config, run.mesh
    processes.report("checking what the devices compute")
    notes = augment.check_device(config.data, batch_sharding(mesh))
    examples = config.batch_size // mesh.size // config.grad_accum_steps
    size = run.task.input_size(config)
    choice = choose_formulation(run.model, size, mesh, examples, workdir)
    return dataclasses.replace(run, model=choice.model), choice, notes


def first_state(run: Run, checkpoints: Checkpoints) -> tuple[Restored, list[str]]:
    """Returns the state that training starts from, and lines about its origin.

    Raises:
      UserError: if no checkpoint can be restored, `init_from` does not fit, or the run
        is beyond its duration already.
    """
    workdir, total = checkpoints.workdir, run.total_steps
    if not processes.broadcast("saved", checkpoints.steps()):
        processes.report("making the first state")
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
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        local_indices=own_rows(run.mesh, run.config.batch_size),
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
