"""Image classification: cross-entropy, top-1 and top-5."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

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
from vt_flax.data.tfds_sources import TFDSSplit
from vt_flax.training.tasks.metrics import smoothed_cross_entropy

Batch = dict[str, jax.Array]
Apply = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(eq=False)
class Classification:
    """Predicts one class for each image.

    Args:
      config: the whole configuration.
      class_names: of the dataset.
      mirrored: for segmentation only.
    """

    config: ConfigDict
    class_names: Sequence[str]
    mirrored: Sequence[int] = ()

    metric: ClassVar[str] = "top1"
    train_metric: ClassVar[str] = "top1"
    titles: ClassVar[dict[str, str]] = {"top1": "top-1", "top5": "top-5"}

    @staticmethod
    def open_source(config: ConfigDict, split: str) -> Source:
        """Opens a split of the configured dataset."""
        data, source = config.data, open_configured(config.data, split)
        stored = isinstance(source, TFDSSplit) and data.on_error == "raise"
        if stored and split == data.eval_split:
            # Otherwise a split without labels fails at the first evaluation only.
            decoder = ClassDecoder(source, data, train=False)
            decoder.decode_alone(source.read([0])[0], (0, 0), source.describe(0))
        return source

    @staticmethod
    def input_size(config: ConfigDict) -> tuple[int, int]:
        """Returns height and width of the images that are trained on."""
        return config.data.image_size, config.data.image_size

    def decoder(self, source: Source, *, train: bool) -> ClassDecoder:
        """Returns the decoder of a source's examples."""
        return ClassDecoder(source, self.config.data, train=train)

    def noise(self, batch: int) -> dict[str, np.ndarray]:
        """Returns random images with label 0, as they reach the device in training."""
        shape = (batch, *self.input_size(self.config), 3)
        return {
            "image": np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8),
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
        self,
        logits: jax.Array,
        targets: Targets,
        teacher_logits: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns the mean loss and `top1`, with a teacher also its metrics.

        Of mixed examples `top1` is the weight of the predicted label. With a teacher
        the loss is `distillation.weight` times `distillation_loss` plus the rest times
        the labels' loss: the paper's "0.8 teacher + 0.2 labels" (v4; its temperature is
        unstated, and 1 here). `teacher_top1` is the teacher's `top1`,
        `teacher_agreement` the fraction of examples on which both predict one class.
        """

        def top1(logits: jax.Array) -> jax.Array:
            predicted = jnp.argmax(logits, -1)
            return jnp.mean(_mixed(targets, lambda labels: predicted == labels))

        # Cross-entropy is linear in its target: the loss of a mixture is that of its
        # labels.
        smoothing = self.config.loss.label_smoothing
        losses = _mixed(
            targets, lambda labels: smoothed_cross_entropy(logits, labels, smoothing)
        )
        metrics = {"top1": top1(logits)}
        if teacher_logits is not None:
            settings = self.config.distillation
            distilled = distillation_loss(logits, teacher_logits, settings.temperature)
            losses = settings.weight * distilled + (1 - settings.weight) * losses
            same = jnp.argmax(logits, -1) == jnp.argmax(teacher_logits, -1)
            metrics["teacher_top1"] = top1(teacher_logits)
            metrics["teacher_agreement"] = jnp.mean(same, dtype=jnp.float32)
        return jnp.mean(losses), metrics

    def counts(self, apply: Apply, batch: Batch) -> dict[str, jax.Array]:
        """Returns sums over the examples of a batch where `mask` is True.

        `apply` maps normalized images to logits. `top1` and `top5` are numbers of
        examples, int32; `loss` is the cross-entropy without label smoothing.
        """
        logits = apply(augment.normalize(batch["image"], self.config.data))
        labels, mask = batch["label"], batch["mask"]
        # Of equal logits the lowest class comes first.
        _, predicted = jax.lax.top_k(logits, min(5, logits.shape[-1]))
        correct = (predicted == labels[:, None]) & mask[:, None]
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return {
            "top1": jnp.sum(correct[:, 0], dtype=jnp.int32),
            "top5": jnp.sum(correct, dtype=jnp.int32),
            "loss": jnp.sum(jnp.where(mask, loss, 0.0)),
        }

    def results(self, totals: dict[str, Any]) -> dict[str, float]:
        """Returns `top1` and `top5` in percent, and the mean `loss`."""
        examples = totals["examples"]
        return {
            "top1": 100 * totals["top1"].item() / examples,
            "top5": 100 * totals["top5"].item() / examples,
            "loss": totals["loss"].item() / examples,
        }

    def summary(self, results: dict[str, float]) -> str:
        """Returns results as one line."""
        return (
            f"top-1 {results['top1']:.2f} % top-5 {results['top5']:.2f} % "
            f"loss {results['loss']:.4f}"
        )


def distillation_loss(
    logits: jax.Array, teacher_logits: jax.Array, temperature: float
) -> jax.Array:
    """Returns T^2 KL(teacher || student) of softmax(logits / T), (batch,).

    The factor keeps the size of the gradient when T changes (Hinton et al., 2015,
    section 2). Both logits are (batch, classes), float32; T is the temperature.
    """
    student, teacher = (
        jax.nn.log_softmax(x / temperature) for x in (logits, teacher_logits)
    )
    return temperature**2 * optax.losses.kl_divergence_with_log_targets(
        student, teacher
    )


def _mixed(targets: Targets, function: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Returns a function of the labels, averaged by the labels' weights."""
    pairs = zip(targets.labels.T, targets.weights.T, strict=True)
    return sum(weights * function(labels) for labels, weights in pairs)
