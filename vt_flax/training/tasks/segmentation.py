"""Semantic segmentation: cross-entropy and mIoU, each pixel a class."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from ml_collections import ConfigDict

from vt_flax.data.augment import normalize, pairs
from vt_flax.data.augment.scaled import eval_canvas, eval_inputs, eval_weights
from vt_flax.data.decoders import PairDecoder
from vt_flax.data.masks import IGNORE
from vt_flax.data.segmentation_sources import TFDSPairs
from vt_flax.data.sources import FOLDER_PREFIX, prepared_builder
from vt_flax.errors import UserError
from vt_flax.nn.layers import resize
from vt_flax.training.tasks.metrics import (
    confusion_matrix,
    segmentation_scores,
    smoothed_cross_entropy,
)
from vt_flax.training.tasks.pixels import (
    einsum_float32,
    join_rows,
    split_rows,
    valid_pixels,
)

Batch = dict[str, jax.Array]
Apply = Callable[[jax.Array], jax.Array]
# Approximate number of examples that are checked before training.
SAMPLE = 100


class Prediction(NamedTuple):
    """Classes of the pixels of a batch of images.

    Attributes:
      classes: uint8, (batch, H, W), IGNORE beyond an image.
      probs: their probabilities, float32, (batch, H, W), 0 beyond an image.
      logits: log-probabilities of all classes, float32, (batch, H, W, classes),
        undefined beyond an image; None unless requested.
    """

    classes: jax.Array
    probs: jax.Array
    logits: jax.Array | None


@dataclasses.dataclass(eq=False)
class Segmentation:
    """Predicts a class for each pixel; those labeled IGNORE are not counted.

    Args:
      config: the whole configuration.
      class_names: of the dataset.
      mirrored: class of each class in a mirrored image; empty if none changes.
    """

    config: ConfigDict
    class_names: Sequence[str]
    mirrored: Sequence[int] = ()

    metric: ClassVar[str] = "miou"
    train_metric: ClassVar[str] = "pixel_accuracy"
    titles: ClassVar[dict[str, str]] = {"pixel_accuracy": "pixel accuracy"}

    @staticmethod
    def open_source(config: ConfigDict, split: str) -> TFDSPairs:
        """Opens a split of the configured dataset; checks examples of an evaluation."""
        data, settings = config.data, config.segmentation
        if data.name.startswith(FOLDER_PREFIX):
            raise UserError(
                f"data.name {data.name}: class folders have no masks; make a dataset "
                "of images and masks by `prepare_data image_mask_folder`"
            )
        source = TFDSPairs(
            prepared_builder(data.name, data.data_dir),
            data.name,
            split,
            settings.mask_feature,
            settings.label_map,
            config.model.num_classes,
            data.image_feature,
        )
        if split == data.eval_split and data.on_error == "raise":
            # Otherwise a bad example would end the run at its first evaluation.
            decoder = PairDecoder(source, eval_canvas(config), shrink=False)
            for index in range(0, len(source), max(1, len(source) // SAMPLE)):
                (example,) = source.read([index])
                decoder.decode_alone(example, (0, 0), source.describe(index))
        return source

    @staticmethod
    def input_size(config: ConfigDict) -> tuple[int, int]:
        """Returns height and width of the crops that are trained on."""
        height, width = config.segmentation.crop
        return height, width

    def decoder(self, source: TFDSPairs, *, train: bool) -> PairDecoder:
        """Returns the decoder of a source's images and masks."""
        canvas = self.config.segmentation.canvas if train else eval_canvas(self.config)
        return PairDecoder(source, canvas, shrink=train)

    def noise(self, batch: int) -> dict[str, np.ndarray]:
        """Returns random images and masks, as they reach the device in training."""
        canvas = self.config.segmentation.canvas
        generator, classes = np.random.default_rng(0), len(self.class_names)
        return {
            "image": generator.integers(0, 256, (batch, *canvas, 3), np.uint8),
            "label": generator.integers(0, classes, (batch, *canvas), np.uint8),
            "size": np.tile(np.asarray(canvas, np.int32), (batch, 1)),
        }

    def train_inputs(
        self, batch: Batch, key: jax.Array, sharding: NamedSharding | None
    ) -> tuple[jax.Array, jax.Array]:
        """Augments a training batch; see `pairs.augment_pairs`."""
        del sharding  # every example stays on its device
        return pairs.augment_pairs(
            batch["image"],
            batch["label"],
            batch["size"],
            self.config,
            key,
            self.mirrored,
        )

    def loss(
        self,
        logits: jax.Array,
        targets: jax.Array,
        teacher_logits: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns the mean cross-entropy of the labeled pixels, and their accuracy.

        Args:
          logits: (batch, h, w, classes); resized to the labels' size bilinearly.
          targets: labels (batch, H, W), uint8.
          teacher_logits: None; only classifiers have teachers.
        """
        del teacher_logits
        logits = resize(logits.astype(jnp.float32), *targets.shape[1:])
        labeled = targets != IGNORE
        count = jnp.maximum(jnp.sum(labeled), 1)
        smoothing = self.config.loss.label_smoothing
        losses = smoothed_cross_entropy(logits, targets, smoothing)
        correct = labeled & (jnp.argmax(logits, -1) == targets)
        return jnp.sum(jnp.where(labeled, losses, 0.0)) / count, {
            "pixel_accuracy": jnp.sum(correct) / count
        }

    def counts(self, apply: Apply, batch: Batch) -> dict[str, jax.Array]:
        """Returns sums over a batch; `apply` maps normalized images to logits.

        Returns:
          `confusion`: int32 (classes, classes), pixels by label (row) and prediction;
          `loss`: summed cross-entropy of the labeled pixels.
        """
        labels = jnp.where(batch["mask"][:, None, None], batch["label"], IGNORE)

        def count(probs: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
            classes = probs.shape[-1]
            confusion = confusion_matrix(labels, jnp.argmax(probs, -1), classes)
            # Pixels without a label have no class in `one_hot`.
            losses = -jax.nn.one_hot(labels, classes) * _log(probs)
            return confusion, jnp.sum(losses, (1, 2, 3))

        confusion, losses = self._map_rows(
            count, apply, batch["image"], batch["size"], labels
        )
        return {
            "confusion": jnp.sum(confusion, (0, 1)),
            "loss": jnp.sum(jnp.sum(losses, 0)),
        }

    def predict(
        self,
        apply: Apply,
        images: jax.Array,
        sizes: jax.Array,
        *,
        with_logits: bool = False,
    ) -> Prediction:
        """Predicts the class of each pixel, at each image's own size.

        Args:
          apply: maps normalized images to logits.
          images: uint8, (batch, H, W, 3), each in the upper left corner of its canvas.
          sizes: int32, (batch, 2): height and width of each.
          with_logits: whether to return those of all pixels, in gigabytes of memory.
        """
        height, width = images.shape[1:3]

        def best(probs: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
            classes = jnp.argmax(probs, -1).astype(jnp.uint8)
            return classes, jnp.max(probs, -1), _log(probs) if with_logits else None

        blocks = self._map_rows(best, apply, images, sizes)
        classes, probs, logits = jax.tree.map(lambda x: join_rows(x, height), blocks)
        valid = valid_pixels(sizes, height, width)
        return Prediction(
            jnp.where(valid, classes, IGNORE), jnp.where(valid, probs, 0), logits
        )

    def _map_rows(
        self,
        function: Callable[..., Any],
        apply: Apply,
        images: jax.Array,
        sizes: jax.Array,
        *labels: jax.Array,
    ) -> Any:
        """Maps a function over the probabilities of pixels, ROWS rows at a time.

        Probabilities are averaged over the configured scales and flips, each resized to
        the image's own size before the softmax.

        Args:
          function: of probabilities (batch, ROWS, W, classes) and the rows of `labels`.
          apply: see `predict`, like `images` and `sizes`.
          images: uint8, (batch, H, W, 3).
          sizes: int32, (batch, 2).
          *labels: (batch, H, W); may be left out.

        Returns:
          What the function returns, with a first axis for the blocks of rows.
        """
        settings = self.config.segmentation
        row_weights, logits = [], []
        for scale in settings.eval_scales:
            for flip in (False, True) if settings.eval_flip else (False,):
                weights, wide = self._wide_logits(apply, images, sizes, scale, flip)
                row_weights.append(split_rows(weights, 0))
                logits.append(wide)

        def map_block(block: tuple) -> Any:
            row_weights, *labels = block
            probs = sum(
                jax.nn.softmax(einsum_float32("byn,bnxc->byxc", weights, wide))
                for weights, wide in zip(row_weights, logits, strict=True)
            ) / len(logits)
            return function(probs, *labels)

        labels = (split_rows(x, IGNORE) for x in labels)
        return jax.lax.map(map_block, (row_weights, *labels))

    def _wide_logits(
        self,
        apply: Apply,
        images: jax.Array,
        sizes: jax.Array,
        scale: float,
        flip: bool,
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the logits at one scale, resized to the width of the images.

        Returns:
          Weights (batch, H, h) that resize rows to the images' height, and logits
          (batch, h, W, classes), float32.
        """
        inputs = eval_inputs(images, sizes, self.config, scale, flip)
        logits = apply(normalize(inputs.images, self.config.data)).astype(jnp.float32)
        rows, columns = eval_weights(
            inputs, sizes, logits.shape[1:3], images.shape[1:3], flip
        )
        if flip and self.mirrored:
            logits = logits[..., jnp.asarray(self.mirrored)]
        return rows, einsum_float32("bxm,bnmc->bnxc", columns, logits)

    def results(self, totals: dict[str, Any]) -> dict[str, float | None]:
        """Returns `segmentation_scores`, and the mean `loss` of the labeled pixels.

        Means over classes are None where only one class is labeled: a constant
        prediction would reach 100 %.
        """
        confusion = totals["confusion"]
        pixels = confusion.sum().item()
        if not pixels:
            raise UserError("no pixel of the evaluation split is labeled")
        results = segmentation_scores(confusion, self.class_names)
        if results["labeled_classes"] < 2:
            means = ("miou", "miou_labeled", "fwiou", "mean_accuracy")
            results |= dict.fromkeys(means)
        return {**results, "loss": totals["loss"].item() / pixels}

    def summary(self, results: dict[str, float | None]) -> str:
        """Returns results as one line, with the number of classes that they cover."""
        miou, labeled = results["miou"], results["labeled_classes"]
        items = [f"mIoU {miou:.2f} %" if miou is not None else "mIoU -"]
        if labeled < len(self.class_names):
            items.append(f"({labeled} of {len(self.class_names)} classes labeled)")
        items.append(f"pixel accuracy {results['pixel_accuracy']:.2f} %")
        items.append(f"loss {results['loss']:.4f}")
        return " ".join(items)


def _log(probs: jax.Array) -> jax.Array:
    # A probability that is rounded to 0 has no logarithm.
    return jnp.log(jnp.maximum(probs, 1e-30))
