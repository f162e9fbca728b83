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
      name: of the image.
      scores: (class, score) pairs, best first: probabilities; of a mask, the fraction
        of the pixels of each class.
      confidence: the probability of the likeliest class; of a mask, the mean over the
        pixels of the probabilities of their classes.
      size: height and width of the image.
      classes: of the pixels that the network was given, uint8 (h, w); None of a
        classifier.
    """

    name: str
    scores: Sequence[tuple[str, float]]
    confidence: float
    size: tuple[int, int]
    classes: np.ndarray | None = None

    @property
    def mask(self) -> np.ndarray | None:
        """Class indices at the image's own size, uint8 (H, W); None of a classifier."""
        if self.classes is None:
            return None
        return np.asarray(self.mask_of(self.size))

    def mask_of(self, size: tuple[int, int]) -> Image.Image:
        """Returns the mask in another height and width, by the nearest pixel."""
        mask = Image.fromarray(self.classes)
        return mask.resize(size[::-1], Image.Resampling.NEAREST)


def classified(
    view: View, class_names: Sequence[str], probabilities: np.ndarray
) -> Prediction:
    """Returns the prediction of a classifier.

    Raises:
      UserError: if they are not finite.
    """
    order = np.argsort(-probabilities, kind="stable")
    scores = [(class_names[i], float(probabilities[i])) for i in order]
    return _checked(Prediction(view.name, scores, scores[0][1], view.size))


def segmented(
    view: View, class_names: Sequence[str], classes: np.ndarray, confidence: float
) -> Prediction:
    """Returns the prediction of a segmentation network.

    Args:
      view: of the image.
      class_names: of all classes.
      classes: (H, W), of the whole canvas.
      confidence: see `Prediction`.

    Raises:
      UserError: if the probabilities are not finite.
    """
    height, width = view.lengths
    # A copy, so that the batch it is cut from can go.
    classes = classes[:height, :width].copy()
    found = Prediction(view.name, (), float(confidence), view.size, classes)
    # Counted where Pillow has it: of a large image an array of indices is gigabytes.
    counts = np.asarray(found.mask_of(view.size).histogram())[: len(class_names)]
    order = [i for i in np.argsort(-counts, kind="stable") if counts[i]]
    pixels = view.size[0] * view.size[1]
    scores = [(class_names[i], float(counts[i] / pixels)) for i in order]
    return _checked(dataclasses.replace(found, scores=scores))


def _checked(prediction: Prediction) -> Prediction:
    if not np.isfinite(prediction.confidence):
        raise UserError(
            f"{prediction.name}: the network's probabilities are not finite; its "
            "weights are broken: take another checkpoint"
        )
    return prediction
