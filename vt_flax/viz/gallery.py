"""A folder of pictures of what a network says of images, and a page of them all."""

import dataclasses
import pathlib
from collections.abc import Sequence

import matplotlib
import numpy as np

from vt_flax.inference.predictions import Prediction
from vt_flax.inference.predictor import Looks, Predictor
from vt_flax.inference.reading import Picture
from vt_flax.inference.views import View, view_of
from vt_flax.viz import masks
from vt_flax.viz.page import SIDE, Page
from vt_flax.viz.pictures import head_pictures, shrunk, token_picture
from vt_flax.viz.token_pictures import captions, render

# The longer side, in pixels, of an image from which masks are drawn.
MASK_SIDE = 960
PAGE = "index.html"
CLASSES = (
    "Figures are the probabilities of the likeliest classes; confidence is that of the "
    "likeliest."
)
MASKS = (
    "Figures are the shares of the pixels that the largest classes have; confidence is "
    "the mean, over the pixels, of the probability of each one's class."
)


@dataclasses.dataclass(frozen=True)
class Shown:
    """An image as a gallery keeps it until its batch is drawn.

    Attributes:
      picture: the image, made smaller where it is large.
      view: what the network is given.
    """

    picture: Picture
    view: View

    @classmethod
    def of(cls, picture: Picture, network: Predictor) -> "Shown":
        """Keeps of a picture what is needed."""
        # A copy, so that the large image can be freed.
        small = np.array(shrunk(picture.pixels, MASK_SIDE))
        view = view_of(picture, network.task)
        return cls(Picture(picture.name, small, picture.notes), view)


class Gallery:
    """A folder of pictures, and a page with all of them, written image by image.

    Args:
      folder: is made if it is not there.
      network: what speaks of the images.
      tokens: whether tokens are drawn.
      heads: whether they are also drawn head by head.
      top: classes that are told of an image.

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
        said = CLASSES if not network.segments else MASKS
        self.page = Page(folder / PAGE, f"Predictions of {network.title}", said)

    def add(
        self, names: Sequence[str], some: Sequence[Shown], found: Sequence[Prediction]
    ) -> None:
        """Draws a batch.

        Args:
          names: of the pictures, without endings.
          some: the images.
          found: what the network says of them.

        Raises:
          OSError: if a file cannot be written.
        """
        looks = None
        if self._tokens:
            looks = self._network.looks([shown.view for shown in some])
        for i, (name, shown, prediction) in enumerate(
            zip(names, some, found, strict=True)
        ):
            self._add_one(name, shown, prediction, looks, i)

    def _add_one(
        self,
        name: str,
        shown: Shown,
        prediction: Prediction,
        looks: Looks | None,
        index: int,
    ) -> None:
        class_names = self._network.class_names
        small = shrunk(shown.picture.pixels, SIDE)
        pictures, colours = [small], []
        if prediction.classes is not None:
            self._draw_mask(name, shown, prediction)
            mask = np.asarray(prediction.mask_of(small.shape[:2]))
            painted = masks.paint(small, mask, len(class_names))
            pictures.append(np.round(255 * painted).astype(np.uint8))
            palette = dict(
                zip(class_names, masks.colours(len(class_names)), strict=True)
            )
            colours = [
                matplotlib.colors.to_hex(palette[of]) for of, _ in prediction.shares
            ]
        wide = []
        for suffix, picture in self._token_pictures(shown, prediction, looks, index):
            drawn = render([picture])
            drawn.save(self._folder / f"{name}_{suffix}.png")
            wide.append((" ".join(captions([picture])), drawn))
        self.page.add(
            shown.picture.name,
            prediction.shares[: self._top],
            prediction.confidence,
            pictures,
            wide,
            colours,
            shown.picture.notes,
        )

    def _token_pictures(self, shown, prediction, looks, index):
        if looks is None:
            return
        projections = prediction.classes is not None
        title = shown.picture.name
        if not projections:
            title += f": {prediction.shares[0][0]} {prediction.confidence:.1%}"
        yield "tokens", token_picture(looks, index, title, projections=projections)
        if self._heads:
            heads = head_pictures(looks, index, title, projections=projections)
            yield from heads.items()

    def _draw_mask(self, name: str, shown: Shown, prediction: Prediction) -> None:
        image = shown.picture.pixels
        count = len(self._network.class_names)
        whole = prediction.mask_of(prediction.size).histogram()
        masks.draw_mask(
            self._folder / f"{name}.png",
            image,
            np.asarray(prediction.mask_of(image.shape[:2])),
            self._network.class_names,
            np.asarray(whole[:count]),
        )


def picture_names(network: Predictor, *, tokens: bool, heads: bool) -> list[str]:
    """Returns what the pictures of an image `NAME` are called, `{}` for its name."""
    found = ["{}.png"] if network.segments else []
    if tokens:
        found.append("{}_tokens.png")
    if heads:
        found += [
            f"{{}}_{module}{kind}_heads.png"
            for module in network.tokenizers
            for kind in ("", "_projector")
        ]
    return found
