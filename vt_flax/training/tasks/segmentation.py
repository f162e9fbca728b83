"""Semantic segmentation: cross-entropy and mIoU, each pixel a class."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from ml_collections import ConfigDict

from vt_flax.data.augment import normalize, pairs
from vt_flax.data.augment.scaled import eval_canvas, eval_inputs, eval_weights
from vt_flax.data.decoders import PairDecoder
from vt_flax.data.masks import IGNORE
from vt_flax.data.segmentation_sources import TFDSPairs, notes_on_classes
from vt_flax.data.sources import FOLDER_PREFIX, prepared_builder
from vt_flax.errors import UserError, first_names
from vt_flax.nn.layers import resize
from vt_flax.training.tasks.pixels import exact_product, on_images, row_blocks
from vt_flax.training.tasks.task import Apply, Batch, Task

# Approximate number of a split's masks that are checked before training.
SAMPLE = 100
# Results that are means over classes.
OVER_CLASSES = ("miou", "miou_labeled", "fwiou", "mean_accuracy")


class Prediction(NamedTuple):
    """Classes of the pixels of a batch of images.

    Attributes:
      classes: uint8, (batch, H, W), IGNORE beyond an image.
      probs: their probabilities, float32, (batch, H, W), 0 beyond an image.
      losses: sum of the labeled pixels' losses, (batch,); 0 without labels.
      logits: log-probabilities of all classes, float32, (batch, H, W, classes),
        undefined beyond an image; None unless requested.
    """

    classes: jax.Array
    probs: jax.Array
    losses: jax.Array
    logits: jax.Array | None = None


class Segmentation(Task):
    """Predicts a class for each pixel; those labeled IGNORE are not counted."""

    metric = "miou"
    train_metric = "pixel_accuracy"
    titles = {"miou": "mIoU", "pixel_accuracy": "pixel accuracy"}

    @staticmethod
    def open_source(config: ConfigDict, split: str) -> TFDSPairs:
        """Opens a split of the configured dataset; see `Task`."""
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
        masks = []
        decoder = PairDecoder(source, eval_canvas(config), shrink=False)
        for index in range(0, len(source), max(1, len(source) // SAMPLE)):
            try:
                (example,) = source.read([index])
                if split == data.eval_split:
                    # Else it would end the run at its first evaluation.
                    decoder.decode_alone(example, (0, 0), source.describe(index))
            except UserError:
                if data.on_error == "raise":
                    raise
                continue
            masks.append(example.label)
        source.notes = (*source.notes, *notes_on_classes(source, masks))
        return source

    @staticmethod
    def input_size(config: ConfigDict) -> tuple[int, int]:
        """Returns height and width of the crops that are trained on."""
        height, width = config.segmentation.crop
        return height, width

    def decoder(self, source: TFDSPairs, *, train: bool) -> PairDecoder:
        """Returns the decoder of a source's images and masks."""
        settings = self.config.segmentation
        canvas = settings.canvas if train else eval_canvas(self.config)
        return PairDecoder(source, canvas, shrink=train)

    def noise(self, batch: int) -> dict[str, np.ndarray]:
        """Returns random images and masks; see `Task`."""
        canvas = tuple(self.config.segmentation.canvas)
        generator = np.random.default_rng(0)
        classes = len(self.class_names)
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
          logits: (batch, h, w, classes); brought to the labels' size bilinearly.
          targets: labels (batch, H, W), uint8.
          teacher_logits: None; only classifiers have teachers.
        """
        del teacher_logits
        logits = resize(logits.astype(jnp.float32), *targets.shape[1:])
        known = targets != IGNORE
        count = jnp.maximum(jnp.sum(known), 1)
        losses = cross_entropy(logits, targets, self.config.loss.label_smoothing)
        right = known & (jnp.argmax(logits, -1) == targets)
        return jnp.sum(jnp.where(known, losses, 0.0)) / count, {
            "pixel_accuracy": jnp.sum(right) / count
        }

    def counts(self, apply: Apply, batch: Batch) -> dict[str, jax.Array]:
        """Returns sums over a batch.

        Returns:
          `confusion`: int32 (classes, classes), pixels by label (row) and prediction;
          `loss`: summed cross-entropy of the labeled pixels.
        """
        labels = jnp.where(batch["mask"][:, None, None], batch["label"], IGNORE)
        found = self.predict(apply, batch["image"], batch["size"], labels)
        confusion = count_pairs(labels, found.classes, len(self.class_names))
        return {"confusion": jnp.sum(confusion, 0), "loss": jnp.sum(found.losses)}

    def predict(
        self,
        apply: Apply,
        images: jax.Array,
        sizes: jax.Array,
        labels: jax.Array | None = None,
        *,
        with_logits: bool = False,
    ) -> Prediction:
        """Predicts the class of each pixel, at each image's own size.

        Probabilities are averaged over the configured scales and flips, each brought
        to the image's size before the softmax.

        Args:
          apply: maps normalized images to logits.
          images: uint8, (batch, H, W, 3), each in the upper left corner of its canvas.
          sizes: int32, (batch, 2): height and width of each.
          labels: uint8, (batch, H, W); None without labels.
          with_logits: whether to return those of all pixels, in gigabytes of memory.
        """
        height, width = images.shape[1:3]
        if labels is None:
            labels = jnp.full(images.shape[:3], IGNORE, jnp.uint8)
        rows, columns = self._views(apply, images, sizes)

        def one(total: jax.Array, block: tuple) -> tuple[jax.Array, tuple]:
            *downs, labels = block
            probs = sum(
                jax.nn.softmax(exact_product("byn,bnxc->byxc", down, wide))
                for down, wide in zip(downs, columns, strict=True)
            ) / len(downs)
            # A probability that is rounded to 0 has no logarithm.
            logs = jnp.log(jnp.maximum(probs, 1e-30))
            losses = -jnp.sum(_own(logs, labels), (1, 2))
            classes = jnp.argmax(probs, -1).astype(jnp.uint8)
            maps = classes, jnp.max(probs, -1), logs if with_logits else None
            return total + losses, maps

        def whole(x: jax.Array) -> jax.Array:
            """Joins blocks of rows to maps of the canvas's height."""
            x = x.swapaxes(0, 1)
            return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :height]

        blocks = [row_blocks(x, 0) for x in rows] + [row_blocks(labels, IGNORE)]
        losses, maps = jax.lax.scan(one, jnp.zeros(images.shape[0]), blocks)
        classes, probs, logits = jax.tree.map(whole, maps)
        return Prediction(
            _within(classes, sizes), _within(probs, sizes, 0), losses, logits
        )

    def _views(
        self, apply: Apply, images: jax.Array, sizes: jax.Array
    ) -> tuple[list[jax.Array], list[jax.Array]]:
        """Returns the logits of each scale and flip, resized to the image's width.

        Returns:
          Matrices (batch, H, h) that bring the rows to the image's height, and logits
          (batch, h, W, classes), float32.
        """
        settings = self.config.segmentation
        canvas = images.shape[1:3]
        rows, columns = [], []
        for scale in settings.eval_scales:
            for flip in (False, True) if settings.eval_flip else (False,):
                view = eval_inputs(images, sizes, self.config, scale, flip)
                logits = apply(normalize(view.images, self.config.data))
                logits = logits.astype(jnp.float32)
                down, across = eval_weights(
                    view, sizes, logits.shape[1:3], canvas, flip
                )
                if flip and self.mirrored:
                    logits = logits[..., jnp.asarray(self.mirrored)]
                rows.append(down)
                # Once for all blocks of rows.
                columns.append(exact_product("bxm,bnmc->bnxc", across, logits))
        return rows, columns

    def results(self, totals: dict[str, Any]) -> dict[str, float | None]:
        """Returns `scores`, and the mean `loss` of the labeled pixels.

        Means over classes are None where only one class is labeled: a constant
        prediction would reach 100 %.
        """
        confusion = totals["confusion"]
        pixels = confusion.sum()
        if not pixels:
            raise UserError("no pixel of the evaluation split is labeled")
        found = scores(confusion, self.class_names)
        if found["labeled_classes"] < 2:
            found |= dict.fromkeys(OVER_CLASSES)
        return {**found, "loss": totals["loss"].item() / pixels.item()}

    def notes(self, totals: dict[str, Any]) -> list[str]:
        """Returns a note on the classes without a labeled pixel."""
        names = self.class_names
        labeled = totals["confusion"].sum(1)
        absent = [name for name, count in zip(names, labeled, strict=True) if not count]
        if not absent:
            return []
        note = (
            f"no pixel of {len(absent)} of {len(names)} classes ({first_names(absent)})"
        )
        if len(names) - len(absent) < 2:
            note += ": mIoU needs two, and is left out"
        return [note]

    def summary(self, results: dict[str, float | None]) -> str:
        """Returns results as one line, with the number of classes that they cover."""
        classes, labeled = len(self.class_names), results["labeled_classes"]
        if results["miou"] is None:
            miou = f"mIoU - ({labeled} of {classes} classes labeled)"
        else:
            miou = f"mIoU {results['miou']:.2f} %"
            if labeled < classes:
                counted = sum(results[f"iou/{n}"] is not None for n in self.class_names)
                miou += (
                    f" over {counted} of {classes} classes, "
                    f"{results['miou_labeled']:.2f} % over the {labeled} labeled,"
                )
        accuracy = f"pixel accuracy {results['pixel_accuracy']:.2f} %"
        return f"{miou} {accuracy} loss {results['loss']:.4f}"


def cross_entropy(
    logits: jax.Array, labels: jax.Array, smoothing: float = 0.0
) -> jax.Array:
    """Returns the cross-entropy of each pixel with label smoothing, (...) float32.

    Args:
      logits: (..., classes), float32.
      labels: (...); where one is no class the loss is undefined.
      smoothing: fraction of the target that is uniform over the classes.
    """
    logs = jax.nn.log_softmax(logits)
    return -(1 - smoothing) * _own(logs, labels) - smoothing * jnp.mean(logs, -1)


def _within(maps: jax.Array, sizes: jax.Array, beyond: int = IGNORE) -> jax.Array:
    """Returns maps (batch, H, W) with `beyond` beyond each image's size."""
    return jnp.where(on_images(sizes, *maps.shape[1:]), maps, beyond)


def _own(values: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the value at each pixel's label; 0 where that is no class.

    A sum that the compiler fuses: TPUs gather slowly.
    """
    classes = jnp.arange(values.shape[-1])
    return jnp.sum(jnp.where(classes == labels[..., None], values, 0.0), -1)


def count_pairs(labels: jax.Array, predicted: jax.Array, classes: int) -> jax.Array:
    """Counts pixels by label and prediction.

    As products of ones and zeros, exact in any type: TPUs scatter slowly.

    Args:
      labels: uint8, (batch, H, W); those that are no class are not counted.
      predicted: uint8, (batch, H, W).
      classes: number of classes.

    Returns:
      int32, (batch, classes, classes), label by prediction.
    """

    def one(total: jax.Array, block: tuple) -> tuple[jax.Array, None]:
        label, prediction = (
            jax.nn.one_hot(x, classes, dtype=jnp.bfloat16) for x in block
        )
        found = jnp.einsum(
            "byxl,byxq->blq", label, prediction, preferred_element_type=jnp.float32
        )
        return total + found.astype(jnp.int32), None

    start = jnp.zeros((len(labels), classes, classes), jnp.int32)
    blocks = row_blocks(labels, IGNORE), row_blocks(predicted, IGNORE)
    return jax.lax.scan(one, start, blocks)[0]


def scores(confusion: np.ndarray, class_names: tuple[str, ...]) -> dict[str, Any]:
    """Returns the results of a confusion matrix, in percent.

    Args:
      confusion: pixels by label (row) and prediction.
      class_names: of its rows.

    Returns:
      `miou`: mean intersection over union of the classes that are labeled or predicted
      anywhere: one that is only predicted counts as 0 [choice];
      `miou_labeled`: mean over the labeled classes alone, as in Detectron2;
      `labeled_classes`: the number of these;
      `fwiou`: mean weighted by labeled pixels; `pixel_accuracy`;
      `mean_accuracy`: mean recall of the labeled classes;
      `iou/CLASS`: of each class, None if it is neither labeled nor predicted.

    Source: Long et al., 2015, section 5.
    """
    confusion = confusion.astype(np.float64)
    right = np.diag(confusion)
    labeled, predicted = confusion.sum(1), confusion.sum(0)
    union = labeled + predicted - right
    there = union > 0
    iou = np.where(there, right / np.maximum(union, 1), 0.0)
    known = labeled > 0
    total = labeled.sum()
    percent = {
        "miou": iou[there].mean(),
        "miou_labeled": iou[known].mean(),
        "fwiou": (labeled * iou).sum() / total,
        "pixel_accuracy": right.sum() / total,
        "mean_accuracy": (right[known] / labeled[known]).mean(),
    }
    return {
        **{name: 100 * share.item() for name, share in percent.items()},
        "labeled_classes": int(known.sum()),
        **{
            f"iou/{name}": 100 * iou[i].item() if there[i] else None
            for i, name in enumerate(class_names)
        },
    }
