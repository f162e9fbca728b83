"""Images as evaluation has them: a crop of each, or each in a canvas."""

import dataclasses

import numpy as np
from PIL import Image

from vt_flax.data.augment.scaled import eval_canvas
from vt_flax.data.center_crop import center_crop
from vt_flax.inference.reading import Picture
from vt_flax.training.tasks import Task
from vt_flax.training.tasks.segmentation import Segmentation


@dataclasses.dataclass(frozen=True)
class View:
    """An image as evaluation has it.

    Attributes:
      name: name of the image.
      size: height and width of the image.
      pixels: (h, w, 3), uint8, of one size for all images: the central crop, or the
        whole image in the upper left corner of a canvas.
      lengths: height and width, in `pixels`, of the part that shows the image.
      notes: see `Picture`.
    """

    name: str
    size: tuple[int, int]
    pixels: np.ndarray
    lengths: tuple[int, int]
    notes: tuple[str, ...] = ()


def view_of(picture: Picture, task: Task) -> View:
    """Returns an image as the task's evaluation has it.

    For classification it is resized and cropped. For segmentation it keeps its size,
    unless it is larger than the canvas: then it is shrunk.
    """
    if isinstance(task, Segmentation):
        pixels, lengths = _in_canvas(picture.pixels, eval_canvas(task.config))
    else:
        size, resize = task.config.data.image_size, task.config.data.eval_resize
        pixels = center_crop(picture.pixels, size, resize or size)
        lengths = pixels.shape[:2]
    return View(picture.name, picture.pixels.shape[:2], pixels, lengths, picture.notes)


def _in_canvas(
    pixels: np.ndarray, canvas: tuple[int, int]
) -> tuple[np.ndarray, tuple[int, int]]:
    """Returns an image in the upper left corner of a canvas, and its lengths there."""
    height, width = pixels.shape[:2]
    scale = min(canvas[0] / height, canvas[1] / width)
    if scale < 1:
        height, width = (
            min(max(round(side * scale), 1), most)
            for side, most in zip((height, width), canvas, strict=True)
        )
        image = Image.fromarray(pixels)
        pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    placed = np.zeros((*canvas, 3), np.uint8)
    placed[:height, :width] = pixels
    return placed, (height, width)
