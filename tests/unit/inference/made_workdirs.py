"""Workdirs of networks that nobody has trained, with statistics as if somebody had."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from vt_flax.training.checkpoint import Checkpoints
from vt_flax.training.config import resolve
from vt_flax.training.optimizer import make_optimizer
from vt_flax.training.run import model_for
from vt_flax.training.state import create_state
from vt_flax.training.tasks import task_of
from vt_flax.training.workdir import RunRecord


def _drawn(path, array, rng):
    """Returns what an array might be after training, by its name."""
    name, shape = path[-1].key, array.shape
    if name in ("var", "scale"):
        return jnp.float32(rng.uniform(0.5, 1.5, shape))
    size = math.sqrt(math.prod(shape[:-1])) if len(shape) > 1 else 10
    return jnp.float32(rng.normal(size=shape) / size)


def make_workdir(folder, config, names, steps=(7,)):
    """Writes the workdir of a run, each checkpoint with weights of its own.

    Args:
      folder: the workdir.
      config: what differs from the defaults.
      names: of the classes.
      steps: of the checkpoints.
    """
    config = resolve(ConfigDict(config))
    model = model_for(config, len(names))
    optimizer = make_optimizer(config.optimizer, optax.constant_schedule(0.0))
    size, ema = task_of(config).input_size(config), bool(config.ema.decay)
    shapes = jax.eval_shape(lambda: create_state(model, optimizer, size, 0, ema=ema))
    state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    checkpoints = Checkpoints(folder, keep=len(steps))
    for step in steps:
        rng = np.random.default_rng(step)
        drawn = {
            part: jax.tree.map_with_path(
                lambda path, x, rng=rng: _drawn(path, x, rng), getattr(shapes, part)
            )
            for part in ("params", "batch_stats", "ema_params", "ema_batch_stats")
        }
        checkpoints.save(step, state.replace(step=jnp.int32(step), **drawn))
    checkpoints.close()
    RunRecord(config.to_dict(), names).write(folder)
