"""The prediction for one image."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from PIL import Image

from vt_flax.errors import UserError
from vt_flax.inference.views import View


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Classes of an image, or of each of its pixels.

    Attributes:
      name: name of the image.
      scores: (class, score) pairs, best first. Scores are probabilities; in
        segmentation, the fraction of the pixels in each class that occurs.
      confidence: probability of the most likely class; in segmentation, its mean over
        the pixels.
      size: height and width of the image.
      classes: class index of each pixel of the view, uint8 (h, w); None in
        classification.
    """

    name: str
    scores: Sequence[tuple[str, float]]
    confidence: float
    size: tuple[int, int]
    classes: np.ndarray | None = None

    @property
    def mask(self) -> np.ndarray | None:
        """Class indices at the image's own size, uint8 (H, W), or None."""
        if self.classes is None:
            return None
        return np.asarray(self.mask_of(self.size))

    def mask_of(self, size: tuple[int, int]) -> Image.Image:
        """Returns the mask in another height and width, by the nearest pixel."""
        mask = Image.fromarray(self.classes)
        return mask.resize(size[::-1], Image.Resampling.NEAREST)


def classified(view: View, class_names: Sequence[str], probs: np.ndarray) -> Prediction:
    """Returns the prediction of a classifier, by the probabilities of the classes.

    Raises:
      UserError: if they are not finite.
    """
    order = np.argsort(-probs, kind="stable")
    scores = [(class_names[i], float(probs[i])) for i in order]
    _check_finite(view, scores[0][1])
    return Prediction(view.name, scores, scores[0][1], view.size)


def segmented(
    view: View, class_names: Sequence[str], classes: np.ndarray, confidence: float
) -> Prediction:
    """Returns the prediction of a segmentation network, by its classes (H, W).

    Raises:
      UserError: if the confidence is not finite.
    """
    _check_finite(view, confidence)
    height, width = view.lengths
    # A copy, so that the arrays of the batch can be freed.
    classes = classes[:height, :width].copy()
    found = Prediction(view.name, (), float(confidence), view.size, classes)
    # Counted by Pillow: NumPy would make an array of 64-bit integers of a large image.
    counts = np.asarray(found.mask_of(view.size).histogram())[: len(class_names)]
    order = [i for i in np.argsort(-counts, kind="stable") if counts[i]]
    pixels = view.size[0] * view.size[1]
    scores = [(class_names[i], float(counts[i] / pixels)) for i in order]
    return dataclasses.replace(found, scores=scores)


def _check_finite(view: View, confidence: float) -> None:
    if not np.isfinite(confidence):
        raise UserError(
            f"{view.name}: the network's probabilities are not finite; its weights are "
            "broken: take another checkpoint"
        )
