"""One training step and one evaluation step, as pure functions."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from vt_flax.parallel.mesh import (
    BATCH_AXES,
    batch_sharding,
    on_devices_of,
    replicated,
    state_sharding,
)
from vt_flax.training.state import TrainState
from vt_flax.training.tasks import Task

Metrics = dict[str, jax.Array]
# Maps the teacher's variables and images normalized for the student to logits.
Teacher = Callable[[Any, jax.Array], jax.Array]

# Fields of a batch that are not split into microbatches.
BOOKKEEPING = ("bad", "request")


def make_train_step(
    model: nn.Module,
    task: Task,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    config: ConfigDict,
    mesh: Mesh,
    teacher: Teacher | None = None,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Returns `train_step(state, batch, teacher_variables=None) -> state, metrics`.

    `batch` is sharded over the mesh. It holds the fields of the task's decoder, (batch,
    ...) each; `bad`, bool (batch,), True where an example replaces an unreadable one;
    and `request`, int32 (devices,): see `requests`. The metrics are scalars of this
    batch: `loss`, the task's own, `learning_rate`, `grad_norm`, `skipped` (number of
    unreadable examples), `request`, and `finite`, False if the loss, a gradient or a
    batch statistic is not a finite number. All randomness comes from the state's key
    and step.

    With `config.grad_accum_steps` of n > 1 the batch is computed in n microbatches, one
    after the other, and updates once, by the mean of their gradients. Microbatch i
    takes examples i, i + n, i + 2n, ... of the batch, equally many on every device.
    BatchNorm's statistics are those of a microbatch, and the running statistics are
    updated n times.

    With an `fsdp` axis the parameters are gathered where they are used, and gradients
    sharded as the parameters are. `teacher_variables` are sharded as a state is; the
    teacher's logits are those of the augmented images, without a gradient.
    """
    microbatches = config.grad_accum_steps
    sharded = mesh.shape["fsdp"] > 1

    def gradients(params, batch_stats, batch, key, teacher_variables):
        """Returns gradients, new batch statistics and metrics of a (micro)batch."""
        augment_key, model_key = jax.random.split(key)
        images, targets = task.train_inputs(batch, augment_key, batch_sharding(mesh))
        with on_devices_of(mesh):
            teacher_logits = teacher(teacher_variables, images) if teacher else None

        def compute_loss(params):
            logits, updates = model.apply(
                {"params": params, "batch_stats": batch_stats},
                images,
                train=True,
                rngs={"dropout": model_key},
                mutable=["batch_stats"],
            )
            loss, metrics = task.loss(logits, targets, teacher_logits)
            return loss, (metrics, updates.get("batch_stats", {}))

        with on_devices_of(mesh):
            (loss, (metrics, new_stats)), grads = jax.value_and_grad(
                compute_loss, has_aux=True
            )(params)
        if sharded:
            grads = jax.lax.with_sharding_constraint(grads, state_sharding(mesh, grads))
        return grads, new_stats, {"loss": loss, **metrics}

    def accumulated(params, batch_stats, batch, key, teacher_variables):
        """Returns the mean of `gradients` over the microbatches."""

        def add_microbatch(carry, inputs):
            total, stats = carry
            grads, stats, metrics = gradients(params, stats, *inputs, teacher_variables)
            return (jax.tree.map(jnp.add, total, grads), stats), metrics

        examples = {name: x for name, x in batch.items() if name not in BOOKKEEPING}
        zeros = jax.tree.map(jnp.zeros_like, params)
        if sharded:
            zeros = jax.lax.with_sharding_constraint(zeros, state_sharding(mesh, zeros))
        keys = jax.random.split(key, microbatches)
        (total, batch_stats), metrics = jax.lax.scan(
            add_microbatch,
            (zeros, batch_stats),
            (_split_batch(examples, microbatches, mesh), keys),
        )
        mean = jax.tree.map(lambda x: x / microbatches, total)
        return mean, batch_stats, jax.tree.map(jnp.mean, metrics)

    def train_step(
        state: TrainState, batch: dict, teacher_variables: Any = None
    ) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        params = state.params
        if sharded:
            params, teacher_variables = jax.lax.with_sharding_constraint(
                (params, teacher_variables), replicated(mesh)
            )
        compute = accumulated if microbatches > 1 else gradients
        grads, batch_stats, metrics = compute(
            params, state.batch_stats, batch, key, teacher_variables
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)

        ema = state.ema_params, state.ema_batch_stats
        if config.ema.decay:
            ema = update_ema(ema, (params, batch_stats), state.step, config.ema)
        grad_norm = optax.tree.norm(grads)
        stats_norm = optax.tree.norm(batch_stats)
        metrics |= {
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
            "grad_norm": grad_norm,
            "skipped": jnp.sum(batch["bad"], dtype=jnp.int32),
            "request": jnp.max(batch["request"]),
            "finite": jnp.isfinite(metrics["loss"] + grad_norm + stats_norm),
        }
        state = state.replace(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            ema_params=ema[0],
            ema_batch_stats=ema[1],
        )
        return state, metrics

    return train_step


def _split_batch(batch: dict, count: int, mesh: Mesh) -> dict:
    """Reshapes (batch, ...) to (count, batch / count, ...), each on its device."""
    sharding = NamedSharding(mesh, PartitionSpec(None, BATCH_AXES))

    def split(x: jax.Array) -> jax.Array:
        x = x.reshape(len(x) // count, count, *x.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(x, sharding)

    return jax.tree.map(split, batch)


def update_ema(ema: Any, new: Any, step: jax.Array, config: ConfigDict) -> Any:
    """Updates exponential moving averages, a tree of arrays like `new`.

    `step` is the number of updates before this one, `config` the section `ema`. With
    `ramp` the decay is at most (1 + step) / (10 + step), as with TensorFlow's
    `num_updates`, so that a short run does not keep its initial values.
    """
    decay = jnp.float32(config.decay)
    if config.ramp:
        count = step.astype(jnp.float32)
        decay = jnp.minimum(decay, (1 + count) / (10 + count))
    return optax.incremental_update(new, ema, 1 - decay)


def compile_train_step(
    model: nn.Module,
    task: Task,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    config: ConfigDict,
    mesh: Mesh,
    state: TrainState,
    teacher: Teacher | None = None,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Returns `make_train_step`, jitted; `state` gives the shardings of the next one.

    The state that is passed in is donated: it is gone after the call.
    """
    return jax.jit(
        make_train_step(model, task, optimizer, schedule, config, mesh, teacher),
        donate_argnums=0,
        out_shardings=(state_sharding(mesh, state), replicated(mesh)),
    )


def compile_eval_step(
    model: nn.Module, task: Task, mesh: Mesh
) -> Callable[[Any, Any, dict], Metrics]:
    """Returns `eval_step(params, batch_stats, batch) -> counts`, jitted.

    `batch` is one of `batches.eval_batches`, sharded over the mesh. The counts are the
    task's, `examples`, and `skipped` (number of unreadable examples).
    """

    def eval_step(params: Any, batch_stats: Any, batch: dict) -> Metrics:
        variables = {"params": params, "batch_stats": batch_stats}
        with on_devices_of(mesh):
            counts = task.counts(
                lambda images: model.apply(variables, images, train=False), batch
            )
        return {
            **counts,
            "examples": jnp.sum(batch["mask"], dtype=jnp.int32),
            "skipped": jnp.sum(batch["bad"], dtype=jnp.int32),
        }

    return jax.jit(eval_step)
