"""One training step and one evaluation step, as pure functions."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vt_flax.data import augment
from vt_flax.parallel.mesh import batch_sharding, replicated
from vt_flax.training import tasks
from vt_flax.training.ema import update_ema
from vt_flax.training.state import TrainState

Metrics = dict[str, jax.Array]


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    config: ConfigDict,
    mesh: Mesh,
) -> Callable[[TrainState, dict], tuple[TrainState, Metrics]]:
    """Returns `train_step(state, batch) -> state, metrics`.

    `batch` is spread over the mesh and holds `image`, uint8 (batch, H, W, 3), `label`,
    int32 (batch,), and `bad`, bool (batch,), True where an example stands for an
    unreadable one. The metrics are scalars of this batch: `loss`, `top1` (share; of
    mixed examples the weight of the label that comes first), `rate`, `grad_norm`,
    `skipped` (number of unreadable examples), and `finite`, False if the loss, a
    gradient or a batch statistic is not a finite number.
    All noise comes from the state's key and step.
    """

    def train_step(state: TrainState, batch: dict) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        augment_key, model_key = jax.random.split(key)
        images, targets = augment.augment(
            batch["image"],
            batch["label"],
            config.data,
            augment_key,
            batch_sharding(mesh),
        )

        def compute_loss(params):
            logits, updates = model.apply(
                {"params": params, "batch_stats": state.batch_stats},
                images,
                train=True,
                rngs={"dropout": model_key},
                mutable=["batch_stats"],
            )
            losses = tasks.mixed_loss(logits, targets, config.loss)
            return jnp.mean(losses), (logits, updates.get("batch_stats", {}))

        (loss, (logits, batch_stats)), grads = jax.value_and_grad(
            compute_loss, has_aux=True
        )(state.params)
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
            "loss": loss,
            "top1": jnp.mean(tasks.mixed_top1(logits, targets)),
            "rate": jnp.asarray(schedule(state.step), jnp.float32),
            "grad_norm": grad_norm,
            "skipped": jnp.sum(batch["bad"], dtype=jnp.int32),
            "finite": jnp.isfinite(loss + grad_norm + stats_norm),
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


def compile_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    config: ConfigDict,
    mesh: Mesh,
) -> Callable[[TrainState, dict], tuple[TrainState, Metrics]]:
    """Returns `make_train_step`, jitted as it is trained with and measured.

    The state is donated: the one that was passed in is gone after the call.
    """
    return jax.jit(
        make_train_step(model, optimizer, schedule, config, mesh),
        donate_argnums=0,
        out_shardings=replicated(mesh),
    )


def make_eval_step(
    model: nn.Module, config: ConfigDict
) -> Callable[[Any, Any, dict], Metrics]:
    """Returns `eval_step(params, batch_stats, batch) -> counts`.

    `batch` holds `image`, `label`, `mask` and `bad`; see `pipeline.eval_batches`. Adds
    `skipped`, the number of unreadable examples, to `tasks.classification_counts`.
    """

    def eval_step(params: Any, batch_stats: Any, batch: dict) -> Metrics:
        logits = model.apply(
            {"params": params, "batch_stats": batch_stats},
            augment.normalise(batch["image"], config.data),
            train=False,
        )
        counts = tasks.classification_counts(logits, batch["label"], batch["mask"])
        return {**counts, "skipped": jnp.sum(batch["bad"], dtype=jnp.int32)}

    return eval_step
