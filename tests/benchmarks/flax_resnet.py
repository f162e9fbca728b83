"""A plain ResNet, in the manner of Flax's ImageNet example, and its training step.

python tests/benchmarks/flax_resnet.py --config configs/imagenet.py:resnet18
    --topology v5p:2x2x1 --chip 128

prints what the TPU compiler counts in it. Set JAX_PLATFORMS=cpu where there is an
accelerator.

The network is written with Flax's own layers and trained with optax's own optimizers.
It shares mesh, configuration and train state with ours, and nothing that could be made
faster.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from command import make_parser
from jax.sharding import Mesh
from ml_collections import ConfigDict
from plain import plain_resnet

from vt_flax.cli import startup, tables
from vt_flax.cli.benchmark import check_positive
from vt_flax.models.registry import DTYPES
from vt_flax.parallel.mesh import make_mesh, replicated, state_sharding
from vt_flax.plan.costs import read_costs
from vt_flax.plan.step import MeshStep
from vt_flax.plan.topology import parse_topology
from vt_flax.plan.tpu_compiler import tpu_devices
from vt_flax.training.config import load_config
from vt_flax.training.state import TrainState, create_state
from vt_flax.training.tasks import task_of


class FlaxResNet(nn.Module):
    """ResNet v1.5: a bottleneck strides in its 3 x 3.

    Attributes:
      stage_sizes: blocks of each stage.
      bottleneck: kind of block.
      num_classes: outputs.
      width: channels of the first stage's inner convolutions.
      stem: `imagenet`, or `small` for one 3 x 3 without pooling.
      dtype: type of the computation.
    """

    stage_sizes: Sequence[int]
    bottleneck: bool
    num_classes: int
    width: int = 64
    stem: str = "imagenet"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps images (batch, H, W, 3) to logits (batch, num_classes)."""
        conv = functools.partial(
            nn.Conv, padding="SAME", use_bias=False, dtype=self.dtype
        )
        norm = functools.partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            dtype=self.dtype,
        )

        def block(x: jax.Array, width: int, stride: int) -> jax.Array:
            features = 4 * width if self.bottleneck else width
            if self.bottleneck:
                y = nn.relu(norm()(conv(width, (1, 1))(x)))
                y = conv(width, (3, 3), strides=stride)(y)
            else:
                y = conv(width, (3, 3), strides=stride)(x)
            y = nn.relu(norm()(y))
            y = conv(features, (1, 1) if self.bottleneck else (3, 3))(y)
            y = norm(scale_init=nn.initializers.zeros)(y)
            if x.shape != y.shape:
                x = norm()(conv(features, (1, 1), strides=stride)(x))
            return nn.relu(x + y)

        x = x.astype(self.dtype)
        if self.stem == "imagenet":
            x = conv(self.width, (7, 7), strides=2, padding=[(3, 3), (3, 3)])(x)
            x = nn.max_pool(nn.relu(norm()(x)), (3, 3), strides=(2, 2), padding="SAME")
        else:
            x = nn.relu(norm()(conv(self.width, (3, 3))(x)))
        for i, size in enumerate(self.stage_sizes):
            for j in range(size):
                x = block(x, self.width * 2**i, 2 if i and not j else 1)
        x = jnp.mean(x, axis=(1, 2))
        return nn.Dense(self.num_classes, dtype=self.dtype)(x)


def plain_optimizer(config: ConfigDict, rate: float) -> optax.GradientTransformation:
    """Returns optax's own optimizer for a section `optimizer`.

    It updates as `training.optimizer.make_optimizer` does.
    """
    if config.name == "sgd":
        made = optax.sgd(rate, config.momentum or None, config.nesterov)
    elif config.name == "adamw":
        made = optax.adamw(
            rate,
            config.momentum,
            config.decay,
            config.epsilon,
            weight_decay=config.weight_decay,
            mask=_decayed,
        )
    else:
        tensorflows = config.name == "rmsprop_tf"
        made = optax.rmsprop(
            rate,
            config.decay,
            config.epsilon,
            initial_scale=1.0 if tensorflows else 0.0,
            eps_in_sqrt=tensorflows,
            momentum=config.momentum or None,
            nesterov=config.nesterov,
        )
    parts = [made]
    if config.name != "adamw":
        parts.insert(0, optax.add_decayed_weights(config.weight_decay, _decayed))
    if config.clip_norm:
        parts.insert(0, optax.clip_by_global_norm(config.clip_norm))
    return optax.chain(*parts)


def _decayed(params: Any) -> Any:
    return jax.tree.map(lambda x: x.ndim > 1, params)


class FlaxResNetStep(MeshStep):
    """Its training step: normalization, both passes, optimizer, and EMA if configured.

    It has no augmentation, dropout, stochastic depth, distillation or gradient
    accumulation. For the arguments see `Step`.
    """

    def __init__(self, config: ConfigDict, mesh: Mesh, batch: int):
        plain = plain_resnet(config)
        model = FlaxResNet(
            plain.stage_sizes,
            plain.bottleneck,
            plain.num_classes,
            plain.width,
            plain.stem,
            DTYPES[config.model.dtype],
        )
        optimizer = plain_optimizer(config.optimizer, 1e-3)
        task = task_of(config)(config, [""] * plain.num_classes)
        size = task.input_size(config)
        mean, std = (np.float32(config.data[key]) for key in ("mean", "std"))

        def create() -> TrainState:
            ema = bool(config.ema.decay)
            return create_state(model, optimizer, size, config.seed, ema=ema)

        def step(
            state: TrainState, batch: dict[str, jax.Array], teacher: None
        ) -> tuple[TrainState, dict[str, jax.Array]]:
            images = (batch["image"] / 255.0 - mean) / std
            targets = optax.smooth_labels(
                jax.nn.one_hot(batch["label"], plain.num_classes),
                config.loss.label_smoothing,
            )

            def compute_loss(params: Any) -> tuple[jax.Array, Any]:
                logits, new = model.apply(
                    {"params": params, "batch_stats": state.batch_stats},
                    images,
                    train=True,
                    mutable=["batch_stats"],
                )
                logits = logits.astype(jnp.float32)
                loss = optax.softmax_cross_entropy(logits, targets).mean()
                return loss, (logits, new["batch_stats"])

            (loss, (logits, batch_stats)), gradients = jax.value_and_grad(
                compute_loss, has_aux=True
            )(state.params)
            updates, opt_state = optimizer.update(
                gradients, state.opt_state, state.params
            )
            params = optax.apply_updates(state.params, updates)
            averages = (state.ema_params, state.ema_batch_stats)
            if config.ema.decay:
                averages = optax.incremental_update(
                    (params, batch_stats), averages, 1 - config.ema.decay
                )
            state = state.replace(
                step=state.step + 1,
                params=params,
                batch_stats=batch_stats,
                opt_state=opt_state,
                ema_params=averages[0],
                ema_batch_stats=averages[1],
            )
            right = jnp.argmax(logits, -1) == batch["label"]
            return state, {"loss": loss, "top1": jnp.mean(right)}

        shapes = jax.eval_shape(create)
        step = jax.jit(
            step,
            donate_argnums=0,
            out_shardings=(state_sharding(mesh, shapes), replicated(mesh)),
        )
        super().__init__(mesh, batch, model, size, step, create, task.noise)


def main(argv):
    parser = make_parser(__doc__)
    parser.add_argument("--topology", required=True, help="such as v5p:2x2x1")
    parser.add_argument("--chip", type=int, default=128, help="examples per chip (128)")
    args, overrides = parser.parse_known_args(argv)
    check_positive(args, "chip")
    place = parse_topology(args.topology)
    batch = place.batch_size(args.chip)
    config = load_config(args.config, [*overrides, f"--config.batch_size={batch}"])
    mesh = make_mesh(tpu_devices(args.topology))
    costs = read_costs(FlaxResNetStep(config, mesh, batch))
    images = batch / place.devices
    row = {
        "network": plain_resnet(config).name,
        "MB an image, compiler's count": round(costs["bytes"] / 1e6 / images, 1),
        "MB an image, HBM": round(costs["traffic"] / 1e6 / images, 1),
        "GFLOP an image": round(2 * costs["macs"] / 1e9 / images, 3),
    }
    tables.print_rows([row], args.format, f"Plain Flax ResNet on {args.topology}")


if __name__ == "__main__":
    startup.run(main)
