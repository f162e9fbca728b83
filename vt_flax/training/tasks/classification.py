"""Image classification: cross-entropy, top-1 and top-5."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from ml_collections import ConfigDict

from vt_flax.data import augment
from vt_flax.data.augment import Targets
from vt_flax.data.decoders import ClassDecoder
from vt_flax.data.source import Source
from vt_flax.data.sources import open_configured
from vt_flax.data.tfds_sources import TFDSSource
from vt_flax.errors import UserError
from vt_flax.training.tasks.task import Apply, Batch, Task


class Classification(Task):
    """One class for each image."""

    metric = train_metric = "top1"
    titles = {"top1": "top-1", "top5": "top-5"}

    @staticmethod
    def check_config(config: ConfigDict, part: int) -> None:
        """Checks what the task reads of a configuration; see `Task`."""
        augment.check_config(config.data, part)
        weight = config.distillation.weight
        temperature = config.distillation.temperature
        if not 0 <= weight <= 1:
            raise UserError(f"distillation.weight {weight}: must be from 0 to 1")
        if not 0 < temperature < math.inf:
            raise UserError(f"distillation.temperature {temperature}: must be above 0")

    @staticmethod
    def open_source(config: ConfigDict, split: str) -> Source:
        """Opens a split of the configured dataset; see `Task`."""
        data, source = config.data, open_configured(config.data, split)
        stored = isinstance(source, TFDSSource) and data.on_error == "raise"
        if stored and split == data.eval_split:
            # A split without labels would end the run at its first evaluation only.
            decoder = ClassDecoder(source, data, train=False)
            decoder.decode_alone(source.read([0])[0], (0, 0), source.describe(0))
        return source

    @staticmethod
    def input_size(config: ConfigDict) -> tuple[int, int]:
        """Returns height and width of the images that are trained on."""
        return config.data.image_size, config.data.image_size

    def decoder(self, source: Source, *, train: bool) -> ClassDecoder:
        """Returns what makes examples of a source."""
        return ClassDecoder(source, self.config.data, train=train)

    def noise(self, batch: int) -> dict[str, np.ndarray]:
        """Returns examples without a meaning."""
        shape = (batch, *self.input_size(self.config), 3)
        generator = np.random.default_rng(0)
        return {
            "image": generator.integers(0, 256, shape, dtype=np.uint8),
            "label": np.zeros(batch, np.int32),
        }

    def train_inputs(
        self, batch: Batch, key: jax.Array, sharding: NamedSharding | None
    ) -> tuple[jax.Array, Targets]:
        """Augments a training batch; see `augment.augment`."""
        return augment.augment(
            batch["image"], batch["label"], self.config.data, key, sharding
        )

    def loss(
        self, logits: jax.Array, targets: Targets, taught: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns the mean loss and `top1`; and what a teacher has to do with them.

        Of mixed examples `top1` is the weight of the label that comes first. With a
        teacher the loss of an example is `distillation.weight` times
        `distillation_loss` and the rest times that of its labels, mixed and smoothed as
        they are: so the paper's "0.8 teacher + 0.2 labels" is read (v4; its temperature
        is unstated, and 1 here). `teacher_top1` is the teacher's `top1`, and
        `teacher_agreement` the share of examples that both put into the same class.
        """
        losses = mixed_loss(logits, targets, self.config.loss)
        found = {"top1": jnp.mean(mixed_top1(logits, targets))}
        if taught is not None:
            weight = self.config.distillation.weight
            temperature = self.config.distillation.temperature
            learnt = distillation_loss(logits, taught, temperature)
            losses = weight * learnt + (1 - weight) * losses
            same = jnp.argmax(logits, -1) == jnp.argmax(taught, -1)
            found["teacher_top1"] = jnp.mean(mixed_top1(taught, targets))
            found["teacher_agreement"] = jnp.mean(same, dtype=jnp.float32)
        return jnp.mean(losses), found

    def counts(self, apply: Apply, batch: Batch) -> dict[str, jax.Array]:
        """Returns sums over a batch; see `classification_counts`."""
        logits = apply(augment.normalise(batch["image"], self.config.data))
        return classification_counts(logits, batch["label"], batch["mask"])

    def results(self, totals: dict[str, Any]) -> dict[str, float]:
        """Returns `top1` and `top5` in percent, and the mean `loss`."""
        examples = totals["examples"]
        return {
            "top1": 100 * totals["top1"].item() / examples,
            "top5": 100 * totals["top5"].item() / examples,
            "loss": totals["loss"].item() / examples,
        }


def classification_loss(
    logits: jax.Array, labels: jax.Array, config: ConfigDict
) -> jax.Array:
    """Cross-entropy with label smoothing (Szegedy et al., 2015).

    Args:
      logits: (batch, classes), float32.
      labels: (batch,), class indices.
      config: the section `loss`.

    Returns:
      (batch,): the loss of each example.
    """
    targets = optax.smooth_labels(
        jax.nn.one_hot(labels, logits.shape[-1]), config.label_smoothing
    )
    return optax.softmax_cross_entropy(logits, targets)


def distillation_loss(
    logits: jax.Array, taught: jax.Array, temperature: float
) -> jax.Array:
    """Kullback-Leibler divergence from a teacher's answers, T^2 KL(teacher || student).

    Both are softmax(logits / T). The factor keeps the size of the gradient when T
    changes (Hinton et al., 2015, section 2).

    Args:
      logits: (batch, classes), float32.
      taught: the same of the teacher.
      temperature: T.

    Returns:
      (batch,): the loss of each example.
    """
    own, its = (jax.nn.log_softmax(x / temperature) for x in (logits, taught))
    return temperature**2 * optax.losses.kl_divergence_with_log_targets(own, its)


def mixed_loss(logits: jax.Array, targets: Targets, config: ConfigDict) -> jax.Array:
    """Returns the loss of examples with several weighted labels, (batch,).

    Cross-entropy is linear in its target: the loss of a mixture is that of its parts.
    """
    return _weighted(
        targets, lambda labels: classification_loss(logits, labels, config)
    )


def mixed_top1(logits: jax.Array, targets: Targets) -> jax.Array:
    """Returns the weight of the labels that come first, (batch,), float32."""
    return _weighted(targets, lambda labels: label_rank(logits, labels) < 1)


def _weighted(
    targets: Targets, function: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """Sums what a function makes of each label, by the labels' weights."""
    pairs = zip(targets.labels.T, targets.weights.T, strict=True)
    return sum(weights * function(labels) for labels, weights in pairs)


def label_rank(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns how many classes an example puts before its label, (batch,) int32.

    Equal logits are ordered by class index, as `argmax` does. Where any logit is not a
    number the rank is the number of classes, so that nothing counts as right.
    """
    classes = jnp.arange(logits.shape[-1])
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    before = (logits > own) | ((logits == own) & (classes < labels[:, None]))
    rank = jnp.sum(before, axis=-1, dtype=jnp.int32)
    return jnp.where(jnp.isnan(logits).any(-1), logits.shape[-1], rank)


def classification_counts(
    logits: jax.Array, labels: jax.Array, mask: jax.Array
) -> dict[str, jax.Array]:
    """Sums over a batch from which the metrics of a whole split are made.

    Args:
      logits: (batch, classes), float32.
      labels: (batch,), class indices.
      mask: (batch,), False for places that hold no example.

    Returns:
      `top1`, `top5`: counts, int32; `loss`: summed cross-entropy, without label
      smoothing.
    """
    rank = label_rank(logits, labels)
    five = min(5, logits.shape[-1])
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return {
        "top1": jnp.sum(mask & (rank < 1), dtype=jnp.int32),
        "top5": jnp.sum(mask & (rank < five), dtype=jnp.int32),
        "loss": jnp.sum(jnp.where(mask, loss, 0.0)),
    }
