"""Training and evaluation from Python, as `vt_flax train` and `vt_flax evaluate` do."""

import contextlib
import os
import pathlib
import sys
from collections.abc import Sequence

import jax
from ml_collections import ConfigDict

from vt_flax.data.split_check import split_notes
from vt_flax.parallel.devices import set_up_devices
from vt_flax.paths import local_folder
from vt_flax.training import evaluation, loop
from vt_flax.training.checkpoint import Checkpoints
from vt_flax.training.config import load_config, resolve
from vt_flax.training.run import Run, prepare
from vt_flax.training.state import weights_of
from vt_flax.training.step import compile_eval_step
from vt_flax.training.workdir import Results, RunRecord, check_classes, read_run


def train(
    config: ConfigDict | str,
    workdir: str | os.PathLike[str],
    overrides: Sequence[str] = (),
) -> Results:
    """Trains a model, or resumes the run in a workdir.

    Args:
      config: a complete or partial configuration; or a file, as in
        `configs/cifar10.py:cpu`.
      workdir: folder for everything the run writes.
      overrides: arguments such as `--config.batch_size=64`.

    Returns:
      The results of the last evaluation, by weights (`raw`, `ema`) and name; in percent
      except `loss`.

    Raises:
      UserError: for bad input, such as an unknown key or the workdir of another run.
    """
    folder = local_folder("workdir", workdir)
    load = load_config if isinstance(config, str) else resolve
    resolved = load(config, overrides)
    set_up_devices(resolved)
    return loop.train(prepare(resolved), folder)


def evaluate(
    workdir: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    *,
    step: int | None = None,
    best: bool = False,
) -> Results:
    """Evaluates a checkpoint on every example of the run's evaluation split.

    Args:
      workdir: folder of the run.
      overrides: arguments such as `--config.data.eval_split=train`.
      step: step of the checkpoint; None for the newest.
      best: take the best checkpoint instead of the newest.

    Returns:
      Results as of `train`.

    Raises:
      UserError: if there is no such checkpoint, or the data do not fit it.
    """
    folder = local_folder("workdir", workdir)
    record = read_run(folder)
    config = resolve(ConfigDict(record.config), overrides)
    set_up_devices(config)
    # The calling program may have enabled it.
    with jax.enable_x64(False):
        run = prepare(config)
        for note in notes_on_data(run, record, folder):
            print(f"note: {note}", file=sys.stderr)
        _, weights = restore_weights(run, folder, step, best)
        eval_step = compile_eval_step(run.model, run.task, run.mesh)
        return evaluation.evaluate(run, eval_step, weights)


def restore_weights(
    run: Run, workdir: pathlib.Path, step: int | None, best: bool
) -> tuple[int, evaluation.Weights]:
    """Returns the step of a checkpoint and its weights; see `evaluate`."""
    checkpoints = Checkpoints(workdir, read_only=True, best=best)
    with contextlib.closing(checkpoints):
        chosen = checkpoints.choose(step)
        state = checkpoints.restore(run.abstract_state(), chosen).state
    return chosen, weights_of(state)


def notes_on_data(run: Run, record: RunRecord, workdir: pathlib.Path) -> list[str]:
    """Checks that the data have the run's classes; returns notes on them to print."""
    source = run.eval_source
    other_classes = check_classes(record, workdir, run.config, source)
    return list(filter(None, [other_classes, *source.notes, *split_notes(source)]))
