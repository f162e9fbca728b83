"""The training loop, from a configuration to a trained workdir."""

import collections
import contextlib
import dataclasses
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any, TextIO

import jax

from vt_flax.data import augment
from vt_flax.data.batches import train_batches
from vt_flax.data.source import Source, cached
from vt_flax.data.split_check import check_splits
from vt_flax.errors import UserError
from vt_flax.parallel import processes
from vt_flax.parallel.agreement import check_shared
from vt_flax.parallel.mesh import batch_sharding, describe, own_rows, to_global
from vt_flax.training.checkpoint import (
    Checkpoints,
    Window,
    check_same_run,
    locked,
    trained_on,
    write_config,
)
from vt_flax.training.evaluation import evaluate
from vt_flax.training.formulation import choose_formulation
from vt_flax.training.initial import initialise
from vt_flax.training.logging import Clock, RunLogger, memory, read_metrics
from vt_flax.training.profiling import Profile
from vt_flax.training.requests import NONE, STOP, Requests, Stopped
from vt_flax.training.run import Run
from vt_flax.training.state import TrainState
from vt_flax.training.step import compile_eval_step, compile_train_step
from vt_flax.training.teacher import find_teacher


class Diverged(UserError):
    """A loss, gradient or batch statistic is not a finite number."""

    status = 3
    everywhere = True


def weights_of(state: TrainState) -> dict[str, tuple[Any, Any]]:
    """Returns the sets of weights that a state holds, raw and averaged."""
    weights = {"raw": (state.params, state.batch_stats)}
    if state.ema_params:
        weights["ema"] = (state.ema_params, state.ema_batch_stats)
    return weights


def train(
    run: Run, workdir: pathlib.Path, stream: TextIO | None = None
) -> dict[str, dict[str, float]]:
    """Trains, or goes on where the workdir stopped.

    Args:
      run: see `run.prepare`.
      workdir: where checkpoints, metrics and the configuration are kept; of several
        processes the same folder.
      stream: where process 0's progress lines go; standard output by default.

    Returns:
      The last evaluation: see `evaluation.evaluate`.

    Raises:
      UserError: if the workdir holds another run, or is another folder for another
        process, or in use; if none of its checkpoints can be restored, or one cannot be
        written; if a device augments otherwise than the reference, or does not run the
        configured formulation, or computes something else by it; if there is no such
        teacher as is configured.
      Diverged: at the first step that is not finite; the last checkpoint stays.
      Stopped: after a SIGTERM, when the step that was under way is saved.
    """
    with (
        contextlib.ExitStack() as stack,
        processes.failing_together(),
        # A run is the same whatever the program around it computes in.
        jax.enable_x64(False),
    ):
        return _train(run, workdir, stream or sys.stdout, stack)


def _train(
    run: Run, workdir: pathlib.Path, stream: TextIO, stack: contextlib.ExitStack
) -> dict[str, dict[str, float]]:
    config, mesh, total = run.config, run.mesh, run.total_steps
    log_every = run.every["log"]
    eval_every = run.every["eval"]
    save_every = run.every["checkpoint"]

    # Data: do the two splits fit each other?
    split_notes = check_splits(run.train_source, run.eval_source)

    # Teacher: read before anything is written.
    teacher, teacher_variables, taught_by = find_teacher(config), None, ""
    if teacher:
        processes.report("reading the teacher")
        teacher_variables, taught_by = teacher.load(run.task, mesh)

    # Workdir: whose run is it, and is it all processes' and nobody else's?
    processes.report("looking into the workdir")
    check_shared(workdir)
    classes, data = run.task.class_names, trained_on(run.train_source)
    changes = check_same_run(workdir, config, taught_by, classes, data)
    processes.report("checking what the devices compute")
    notes = augment.check_device(config.data, batch_sharding(mesh))
    examples = config.batch_size // mesh.size // config.accumulation
    size = run.task.input_size(config)
    choice = choose_formulation(run.model, size, mesh, examples, workdir)
    run = dataclasses.replace(run, model=choice.model)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(workdir, error) from error
    stack.enter_context(locked(workdir))

    # State: from the workdir, from another run's weights, or from scratch.
    checkpoints = Checkpoints(workdir, config.checkpoint.keep)
    stack.callback(checkpoints.close)
    window: Window = []
    damaged: dict[int, str] = {}
    taken: list[str] = []
    saved = processes.gather("saved", checkpoints.steps())[0]
    processes.report("restoring a checkpoint" if saved else "making the first state")
    if saved:
        restored = checkpoints.restore_newest(run.abstract_state())
        state, window, damaged = restored.state, restored.window, restored.damaged
    else:
        state = run.initial_state()
        if config.init_from:
            state, taken = initialise(state, config.init_from)
    first = int(state.step)
    if first > total:
        raise UserError(
            f"{workdir} is at step {first:,} already, beyond the {total:,} of "
            f"duration {config.duration!r}"
        )

    # Nothing in the workdir has changed so far; from here on it is this run's.
    processes.gather("ready", first)
    best = None
    if config.checkpoint.keep_best:
        best = Checkpoints(workdir, config.checkpoint.keep_best, best=True)
        stack.callback(best.close)
    try:
        if jax.process_index() == 0:
            write_config(workdir, config, classes, run.task.mirrored, taught_by, data)
            choice.write(workdir)
        aside = {step: checkpoints.set_aside(step) for step in damaged}
    except OSError as error:
        raise _unwritable(workdir, error) from error
    logger = RunLogger(
        workdir, tensorboard=config.log.tensorboard, stream=stream, step=first
    )
    stack.callback(logger.close)
    for line in changes:
        logger.say(f"configuration changed: {line}")
    if choice.line:
        logger.say(choice.line)
    for step, place in aside.items():
        logger.say(f"warning: {damaged[step]}: kept as {place}")
    for line in taken:
        logger.say(f"init_from: {line}")
    if teacher:
        logger.say(f"distillation: taught by {teacher.folder}, {taught_by}")
    if saved:
        logger.say(f"going on from step {first:,} of {total:,} in {workdir}")

    # Programs: one for a step, one for evaluation.
    train_step = compile_train_step(
        run.model, run.task, run.optimizer, run.schedule, config, mesh, state, teacher
    )
    eval_step = compile_eval_step(run.model, run.task, mesh)
    requests = Requests(mesh)

    def saves(step: int) -> bool:
        return step % save_every == 0 or step == total

    def evaluates(step: int) -> bool:
        return step % eval_every == 0 or step == total

    noted: set[str] = set()

    def evaluation(state: TrainState, step: int) -> dict[str, dict[str, float]] | None:
        found = evaluate(
            eval_step, weights_of(state), run.task, run.eval_source, config, requests
        )
        if found is None:
            return None
        results, notes = found
        # Of the EMA, if there is one.
        metric = list(results.values())[-1][run.task.metric]
        # Before the record, after which a restart has nothing left to do.
        if best and metric is not None:
            best.save_if_best(step, state, metric)
        logger.write(
            step,
            {f"{name}_{k}": v for name, r in results.items() for k, v in r.items()},
            "eval",
        )
        told = ", ".join(f"{name} {run.task.told(r)}" for name, r in results.items())
        skipped = next(iter(results.values()))["skipped"]
        if skipped:
            told += f"; {skipped} unreadable examples skipped"
        logger.say(f"step {step:,}: {run.eval_source.name}: {told}")
        for note in notes:
            if note not in noted:
                logger.say(f"note: {run.eval_source.name}: {note}")
                noted.add(note)
        return results

    def save(state: TrainState, step: int) -> None:
        processes.report(f"step {step:,}: saving")
        begin = time.monotonic()
        checkpoints.save(step, state, window)
        seconds = time.monotonic() - begin
        logger.write(step, {"blocked_seconds": seconds}, "checkpoint")

    def stopped(step: int) -> Stopped:
        return Stopped(
            f"stopped by SIGTERM after step {step:,} of {total:,}, which is saved in "
            f"{workdir}: run the same command to go on"
        )

    # What was saved last may have been stopped before it was evaluated.
    results: dict[str, dict[str, float]] | None = {}
    if first == total:
        logger.say(f"nothing left to do: {workdir} is at step {first:,} of {total:,}")
    if first and evaluates(first):
        results = processes.gather("evaluated", _evaluated(workdir, first))[0]
        if not results:
            with requests:
                results = evaluation(state, first)
        if results is None:
            raise stopped(first)
    if first == total:
        return results

    # Loop. Metrics are fetched one step late, while the devices work on the next.
    logger.say(
        f"training steps {first:,} to {total:,}: {len(run.train_source):,} examples, "
        f"batch {config.batch_size}"
        + (f" in {config.accumulation} parts" if config.accumulation > 1 else "")
        + f", {describe(mesh)}"
    )
    train_source = run.train_source
    if config.data.cache:
        train_source = cached(train_source)
    notes += [*train_source.notes, *run.eval_source.notes, *split_notes]
    # Two slices of one folder may have the same notes.
    for note in dict.fromkeys(notes):
        logger.say(f"note: {note}")
    clock = Clock(config.batch_size)
    held: collections.deque = collections.deque()
    asked = NONE

    def settle() -> None:
        nonlocal asked
        step, metrics = held.popleft()
        values = {k: v.item() for k, v in jax.device_get(metrics).items()}
        asked = max(asked, values.pop("request"))
        if not values.pop("finite"):
            kept = checkpoints.steps()
            raise Diverged(
                f"step {step:,} is not finite (loss {values['loss']}, gradient norm "
                f"{values['grad_norm']}): "
                + (
                    f"the checkpoint of step {kept[-1]:,} is kept"
                    if kept
                    else "nothing had been saved yet"
                )
                + "; lower schedule.rate or set optimizer.clip_norm"
            )
        window.append(values)
        if step % log_every == 0 or step == total:
            report(step)

    def report(step: int) -> None:
        # Of what a checkpoint brought along another configuration may measure less.
        keys = [k for k in window[-1] if all(k in values for values in window)]
        mean = {k: sum(v[k] for v in window) / len(window) for k in keys}
        mean["rate"] = window[-1]["rate"]
        skipped = mean["skipped"] = sum(v["skipped"] for v in window)
        window.clear()
        mean["epoch"] = step * config.batch_size / len(run.train_source)
        shown = run.task.train_metric
        speed = clock.lap(step)
        if speed is not None:
            mean["images_per_second"] = speed
        logger.write(step, mean | memory(), "train")
        logger.say(
            f"step {step:,}/{total:,} ({step / total:.1%}) epoch {mean['epoch']:.2f}: "
            f"loss {mean['loss']:.4f}, {run.task.titles[shown]} "
            f"{100 * mean[shown]:.1f} %, rate "
            f"{mean['rate']:.3g}, "
            + (f"{speed:,.0f} images/s, " if speed is not None else "")
            + (f"{skipped} unreadable examples skipped, " if skipped else "")
            + f"ETA {clock.remaining(total - step)}"
        )

    batches = stack.enter_context(
        contextlib.closing(device_batches(run, train_source, first))
    )
    profile = stack.enter_context(Profile(config.profile, workdir))
    stack.enter_context(requests)
    # What is not meant to cross between host and devices is an error.
    stack.enter_context(jax.transfer_guard("disallow"))
    saved_at = begin = time.monotonic()
    for step in range(first + 1, total + 1):
        processes.report(f"step {step:,}: waiting for its examples")
        batch = next(batches)
        processes.report(f"step {step:,}: waiting for the devices")
        profile.before(step)
        state, metrics = train_step(state, batch | requests.batch(), teacher_variables)
        held.append((step, metrics))
        if len(held) > 1:
            settle()
        profile.after(step, metrics)
        if step == first + 1:
            jax.block_until_ready(metrics)
            clock.start(step)
            logger.say(f"first step after {time.monotonic() - begin:.0f} s")
        saving, evaluating = saves(step), evaluates(step)
        if saving or evaluating or asked != NONE:
            # Only a state that is known to be finite is saved.
            settle()
            clock.pause()
            # What this last step has brought may ask for it as well.
            if saving or asked != NONE:
                save(state, step)
                saved_at = time.monotonic()
            if evaluating and asked != STOP:
                results = evaluation(state, step)
                asked = STOP if results is None else asked
            if asked == STOP:
                save(state, step)
                raise stopped(step)
            asked = NONE
            clock.resume()
        checkpoints.check()
        minutes = (time.monotonic() - saved_at) / 60
        # One clock counts.
        if jax.process_index() == 0 and 0 < config.checkpoint.minutes <= minutes:
            requests.save()
            saved_at = time.monotonic()
    return results


def device_batches(
    run: Run, source: Source, first: int
) -> Iterator[dict[str, jax.Array]]:
    """Yields global training batches, each on its way to the devices two steps early.

    Two, so that a slow read between two fast ones is not waited for.
    """
    batches = train_batches(
        source,
        run.config.data,
        seed=run.config.seed,
        batch=run.config.batch_size,
        first=first,
        last=run.total_steps,
        part=jax.process_index(),
        parts=jax.process_count(),
        own=own_rows(run.mesh, run.config.batch_size),
        # Of the split itself, which may be kept in memory by now.
        decoder=run.task.decoder(run.train_source, train=True),
    )
    ahead: collections.deque = collections.deque()
    with contextlib.closing(batches):
        for batch in batches:
            ahead.append(to_global(batch, run.mesh))
            if len(ahead) > 2:
                yield ahead.popleft()
    yield from ahead


def _evaluated(workdir: pathlib.Path, step: int) -> dict[str, dict[str, float]]:
    """Returns the evaluation of a step that is on record; empty if there is none."""
    done = [
        record
        for record in read_metrics(workdir)
        if record["kind"] == "eval" and record["step"] == step
    ]
    return _results(done[-1]) if done else {}


def _unwritable(workdir: pathlib.Path, error: OSError) -> UserError:
    return UserError(f"--workdir {workdir}: {error.strerror or error}")


def _results(record: dict[str, Any]) -> dict[str, dict[str, float]]:
    results: dict[str, dict[str, float]] = {}
    for key, value in record.items():
        name, _, metric = key.partition("_")
        if metric:
            results.setdefault(name, {})[metric] = value
    return results
