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
from vt_flax.training.ema import update_ema
from vt_flax.training.state import TrainState
from vt_flax.training.tasks import Task

Metrics = dict[str, jax.Array]
# Maps a trained network's variables, and images as they are trained on, to its logits.
Teacher = Callable[[Any, jax.Array], jax.Array]

# What a batch holds beside its examples.
ASIDE = ("bad", "request")


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

    `batch` is spread over the mesh and holds the fields of the task's decoder, (batch,
    ...) each, `bad`, bool (batch,), True where an example stands for an unreadable one,
    and `request`, int32 (devices,): see `requests`. The metrics are scalars of this
    batch: `loss`, the task's own, `rate`, `grad_norm`, `skipped` (number of unreadable
    examples), `request`, and `finite`, False if the loss, a gradient or a batch
    statistic is not a finite number.
    All noise comes from the state's key and step.

    With `config.accumulation` of n > 1 the batch is computed in n parts, one after the
    other, and updates once, by the mean of their gradients. Part i takes rows i, i + n,
    i + 2n, ... of the batch, of which every device has as many. Batch normalisation
    sees a part: its statistics are those of batch / n examples (a span of g examples is
    g of a part's), and the running averages are updated n times.

    With an `fsdp` axis the parameters are gathered where they are used, and gradients
    spread as the parameters are.

    A teacher is asked about the augmented images, of each part of a batch in turn, and
    no gradient flows there; `teacher_variables` are its own, spread as a state is.
    """
    parts = config.accumulation
    spread = mesh.shape["fsdp"] > 1

    def gradients(
        params: Any,
        batch_stats: Any,
        batch: dict,
        key: jax.Array,
        teacher_variables: Any,
    ) -> tuple[Any, Any, Metrics]:
        augment_key, model_key = jax.random.split(key)
        images, targets = task.train_inputs(batch, augment_key, batch_sharding(mesh))
        with on_devices_of(mesh):
            taught = teacher(teacher_variables, images) if teacher else None

        def compute_loss(params):
            logits, updates = model.apply(
                {"params": params, "batch_stats": batch_stats},
                images,
                train=True,
                rngs={"dropout": model_key},
                mutable=["batch_stats"],
            )
            loss, found = task.loss(logits, targets, taught)
            return loss, (found, updates.get("batch_stats", {}))

        with on_devices_of(mesh):
            (loss, (found, new_stats)), grads = jax.value_and_grad(
                compute_loss, has_aux=True
            )(params)
        if spread:
            grads = jax.lax.with_sharding_constraint(grads, state_sharding(mesh, grads))
        return grads, new_stats, {"loss": loss, **found}

    def accumulated(
        params: Any,
        batch_stats: Any,
        batch: dict,
        key: jax.Array,
        teacher_variables: Any,
    ) -> tuple[Any, Any, Metrics]:
        def one(carry, part):
            total, stats = carry
            grads, stats, found = gradients(params, stats, *part, teacher_variables)
            return (jax.tree.map(jnp.add, total, grads), stats), found

        examples = {name: x for name, x in batch.items() if name not in ASIDE}
        zeros = jax.tree.map(jnp.zeros_like, params)
        if spread:
            zeros = jax.lax.with_sharding_constraint(zeros, state_sharding(mesh, zeros))
        (total, batch_stats), found = jax.lax.scan(
            one,
            (zeros, batch_stats),
            (_in_parts(examples, parts, mesh), jax.random.split(key, parts)),
        )
        mean = jax.tree.map(lambda x: x / parts, total)
        return mean, batch_stats, jax.tree.map(jnp.mean, found)

    def train_step(
        state: TrainState, batch: dict, teacher_variables: Any = None
    ) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        params = state.params
        if spread:
            params, teacher_variables = jax.lax.with_sharding_constraint(
                (params, teacher_variables), replicated(mesh)
            )
        compute = accumulated if parts > 1 else gradients
        grads, batch_stats, found = compute(
            params, state.batch_stats, batch, key, teacher_variables
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)

        ema_params, ema_batch_stats = state.ema_params, state.ema_batch_stats
        if config.ema.decay:
            ema_params = update_ema(ema_params, params, state.step, config.ema)
            ema_batch_stats = update_ema(
                ema_batch_stats, batch_stats, state.step, config.ema
            )

        grad_norm = optax.tree.norm(grads)
        stats_norm = optax.tree.norm(batch_stats)
        metrics = {
            **found,
            "rate": jnp.asarray(schedule(state.step), jnp.float32),
            "grad_norm": grad_norm,
            "skipped": jnp.sum(batch["bad"], dtype=jnp.int32),
            "request": jnp.max(batch["request"]),
            "finite": jnp.isfinite(found["loss"] + grad_norm + stats_norm),
        }
        state = TrainState(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            ema_params=ema_params,
            ema_batch_stats=ema_batch_stats,
            key=state.key,
        )
        return state, metrics

    return train_step


def _in_parts(batch: dict, parts: int, mesh: Mesh) -> dict:
    """Cuts (batch, ...) into (parts, batch / parts, ...); no row leaves its device."""

    def cut(x: jax.Array) -> jax.Array:
        x = x.reshape(len(x) // parts, parts, *x.shape[1:]).swapaxes(0, 1)
        sharding = NamedSharding(mesh, PartitionSpec(None, BATCH_AXES))
        return jax.lax.with_sharding_constraint(x, sharding)

    return jax.tree.map(cut, batch)


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
    """Returns `make_train_step`, jitted as it is trained with and measured.

    The state is donated: the one that was passed in is gone after the call. A teacher's
    variables are not.

    Args:
      model: the network, as in all that follow see `make_train_step`.
      task: what it is trained for.
      optimizer: the optimizer.
      schedule: learning rate by step.
      config: the whole configuration.
      mesh: the devices.
      state: a state, or its shapes: where the next ones lie follows from them.
      teacher: who teaches, if anyone does.
    """
    return jax.jit(
        make_train_step(model, task, optimizer, schedule, config, mesh, teacher),
        donate_argnums=0,
        out_shardings=(state_sharding(mesh, state), replicated(mesh)),
    )


def make_eval_step(
    model: nn.Module, task: Task, mesh: Mesh
) -> Callable[[Any, Any, dict], Metrics]:
    """Returns `eval_step(params, batch_stats, batch) -> counts`.

    `batch` is one of `batches.eval_batches`, spread over the mesh, and `request`. The
    counts are the task's, `examples`, `skipped`, the number of unreadable examples, and
    `request`.
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
            "request": jnp.max(batch["request"]),
        }

    return eval_step


def compile_eval_step(
    model: nn.Module, task: Task, mesh: Mesh
) -> Callable[[Any, Any, dict], Metrics]:
    """Returns `make_eval_step`, jitted as it is evaluated with."""
    return jax.jit(make_eval_step(model, task, mesh))
