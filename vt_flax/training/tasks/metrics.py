"""Cross-entropy; mIoU and accuracies of segmentation from a confusion matrix."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax


def smoothed_cross_entropy(
    logits: jax.Array, labels: jax.Array, smoothing: float
) -> jax.Array:
    """Returns cross-entropy with label smoothing (Szegedy et al., 2015), (...) float32.

    Args:
      logits: (..., classes), float32.
      labels: (...), class indices; where one is no class the loss is undefined.
      smoothing: fraction of the target that is uniform over the classes.
    """
    targets = jax.nn.one_hot(labels, logits.shape[-1])
    targets = optax.smooth_labels(targets, smoothing)
    return optax.softmax_cross_entropy(logits, targets)


def confusion_matrix(
    labels: jax.Array, predicted: jax.Array, classes: int
) -> jax.Array:
    """Counts the pixels of each image by label and prediction.

    As a product of ones and zeros, because TPUs scatter slowly; it is exact for images
    of less than 2^24 pixels.

    Args:
      labels: (batch, H, W); those that are no class are not counted.
      predicted: (batch, H, W).
      classes: number of classes.

    Returns:
      int32, (batch, classes, classes), label by prediction.
    """
    label, prediction = (
        jax.nn.one_hot(x, classes, dtype=jnp.bfloat16) for x in (labels, predicted)
    )
    counts = jnp.einsum(
        "byxl,byxp->blp", label, prediction, preferred_element_type=jnp.float32
    )
    return counts.astype(jnp.int32)


def segmentation_scores(
    confusion: np.ndarray, class_names: Sequence[str]
) -> dict[str, Any]:
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
    correct = np.diag(confusion)
    pixels, predictions = confusion.sum(1), confusion.sum(0)
    union = pixels + predictions - correct
    present, labeled = union > 0, pixels > 0
    iou = np.where(present, correct / np.maximum(union, 1), 0.0)
    fractions = {
        "miou": iou[present].mean(),
        "miou_labeled": iou[labeled].mean(),
        "fwiou": (pixels * iou).sum() / pixels.sum(),
        "pixel_accuracy": correct.sum() / pixels.sum(),
        "mean_accuracy": (correct[labeled] / pixels[labeled]).mean(),
    }
    return {
        **{name: 100 * value.item() for name, value in fractions.items()},
        "labeled_classes": int(labeled.sum()),
        **{
            f"iou/{name}": 100 * iou[i].item() if present[i] else None
            for i, name in enumerate(class_names)
        },
    }
