"""Optimizers by name, as chains of optax transforms."""

from typing import Any

import jax
import optax
from ml_collections import ConfigDict


def decayed(params: Any) -> Any:
    """Returns True for each parameter that decays: no norm scale or bias [choice]."""

    def decays(path: tuple[Any, ...], _: Any) -> bool:
        name = path[-1].key
        return name != "scale" and not name.endswith("bias")

    return jax.tree_util.tree_map_with_path(decays, params)


def make_optimizer(
    config: ConfigDict, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """Returns the optimizer.

    Weight decay is L2, added to the gradient before anything else, except for `adamw`,
    which decouples it.

    `rmsprop_tf` is TensorFlow's: the average of squared gradients starts at 1, epsilon
    is inside the root, and momentum accumulates steps already scaled by the learning
    rate,
    v = a v + (1 - a) g^2;  m = mu m + rate g / sqrt(v + eps);  p = p - m.

    `rmsprop_torch` is PyTorch's: the average starts at 0, epsilon is outside the root,
    and the learning rate scales the momentum,
    v = a v + (1 - a) g^2;  m = mu m + g / (sqrt(v) + eps);  p = p - rate m.

    `sgd` is PyTorch's: m = mu m + g;  p = p - rate m.

    `adamw` (Loshchilov and Hutter, 2017) averages gradients by `momentum` and their
    squares by `decay`, both corrected for starting at 0,
    m = mu m + (1 - mu) g;  v = a v + (1 - a) g^2;
    p = p - rate (m / (1 - mu^t) / (sqrt(v / (1 - a^t)) + eps) + weight_decay p).

    Args:
      config: the section `optimizer`.
      schedule: learning rate by step.
    """
    rate = optax.scale_by_learning_rate(schedule)
    # Disabled steps keep their position, so that a run can resume with them enabled.
    off = optax.identity()
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else off
    decay = optax.add_decayed_weights(config.weight_decay, decayed)
    momentum = optax.trace(config.momentum, config.nesterov) if config.momentum else off
    if config.name == "rmsprop_tf":
        scale = optax.scale_by_rms(
            config.decay, config.epsilon, initial_scale=1.0, eps_in_sqrt=True
        )
        return optax.chain(clip, decay, scale, rate, momentum)
    if config.name == "rmsprop_torch":
        scale = optax.scale_by_rms(
            config.decay, config.epsilon, initial_scale=0.0, eps_in_sqrt=False
        )
        return optax.chain(clip, decay, scale, momentum, rate)
    if config.name == "sgd":
        return optax.chain(clip, decay, momentum, rate)
    scale = optax.scale_by_adam(config.momentum, config.decay, config.epsilon)
    return optax.chain(clip, scale, decay, rate)
