"""The output folder of `predict`: a page of all images, and pictures of each."""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from vt_flax.inference.predictions import Prediction
from vt_flax.inference.predictor import Predictor, TokenAttention
from vt_flax.inference.reading import Picture
from vt_flax.inference.views import View
from vt_flax.viz import masks
from vt_flax.viz.overlays import shrink
from vt_flax.viz.page import SIDE, Page
from vt_flax.viz.token_pictures import (
    TokenPicture,
    captions,
    head_pictures,
    render,
    token_picture,
)

# Longer side, in pixels, of images that masks are drawn over.
MASK_SIDE = 960
PAGE = "index.html"
CLASSES = (
    "Numbers are the probabilities of the most likely classes; confidence is the "
    "largest."
)
MASKS = (
    "Numbers are the fractions of the pixels in the largest classes; confidence is the "
    "mean over the pixels of the probabilities of their classes."
)


@dataclasses.dataclass(frozen=True)
class Shown:
    """An image in a gallery: the name of its pictures, its own name, and pixels."""

    stem: str
    name: str
    pixels: np.ndarray
    notes: tuple[str, ...]

    @classmethod
    def of(cls, stem: str, picture: Picture) -> "Shown":
        """Returns a reduced copy of a picture, so that large images can be freed."""
        pixels = np.array(shrink(picture.pixels, MASK_SIDE))
        return cls(stem, picture.name, pixels, picture.notes)


class Gallery:
    """A folder of pictures, and a page with all of them, written batch by batch.

    Args:
      folder: made if it is missing.
      network: the network that predicts.
      tokens: whether to draw token attention.
      heads: whether to draw it also head by head.
      top: number of classes shown for an image.

    Raises:
      OSError: if it cannot be written.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        network: Predictor,
        *,
        tokens: bool,
        heads: bool,
        top: int,
    ):
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._network = folder, network
        self._tokens, self._heads, self._top = tokens, heads, top
        self._colors: dict[str, str] = {}
        if network.segments:
            names = network.class_names
            self._colors = dict(zip(names, masks.css_colors(len(names)), strict=True))
        description = MASKS if network.segments else CLASSES
        title = f"Predictions of {network.title}"
        self.page = Page(folder / PAGE, title, description)

    def add(
        self,
        images: Sequence[Shown],
        views: Sequence[View],
        predictions: Sequence[Prediction],
    ) -> None:
        """Draws a batch of images and their predictions.

        Raises:
          OSError: if a file cannot be written.
        """
        attention = self._network.attention(views) if self._tokens else None
        for i, (shown, prediction) in enumerate(zip(images, predictions, strict=True)):
            pictures = [shrink(shown.pixels, SIDE)]
            if prediction.classes is not None:
                masks.draw_mask(
                    self._folder / f"{shown.stem}.png",
                    shown.pixels,
                    np.asarray(prediction.mask_of(shown.pixels.shape[:2])),
                    self._network.class_names,
                    prediction.scores,
                )
                mask = np.asarray(prediction.mask_of(pictures[0].shape[:2]))
                pictures.append(masks.paint(pictures[0], mask, len(self._colors)))
            wide = []
            if attention:
                for suffix, picture in self._token_pictures(prediction, attention, i):
                    drawn = render([picture])
                    drawn.save(self._folder / f"{shown.stem}_{suffix}.png")
                    wide.append((" ".join(captions([picture])), drawn))
            scores = prediction.scores[: self._top]
            self.page.add(
                shown.name,
                pictures,
                scores=scores,
                confidence=prediction.confidence,
                colors=[self._colors[name] for name, _ in scores if self._colors],
                notes=shown.notes,
                wide=wide,
            )

    def _token_pictures(
        self, prediction: Prediction, attention: TokenAttention, index: int
    ) -> Iterator[tuple[str, TokenPicture]]:
        projections = self._network.segments
        title = prediction.name
        if not projections:
            title += f": {prediction.scores[0][0]} {prediction.confidence:.1%}"
        yield "tokens", token_picture(attention, index, title, projections=projections)
        if self._heads:
            heads = head_pictures(attention, index, title, projections=projections)
            yield from heads.items()
