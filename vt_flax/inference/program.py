"""A trained network as one function of decoded images, for use without this package."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vt_flax.data.augment import normalize
from vt_flax.data.augment.resampling import center_crop
from vt_flax.data.augment.scaled import eval_canvas
from vt_flax.data.masks import IGNORE
from vt_flax.errors import UserError
from vt_flax.inference.predictor import Predictor

# Of an input that may be of any size.
ANY = ("height", "width")

# Height and width in pixels, or ANY; None for the size of the evaluation.
Size = tuple[int, int] | tuple[str, str] | None


@dataclasses.dataclass(frozen=True)
class Array:
    """What goes into a program or comes out of it.

    Attributes:
      name: of the array.
      dtype: its type.
      shape: numbers, and names of what may be any number: `batch`, `height`, `width`.
      meaning: for people.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    meaning: str

    @property
    def symbols(self) -> str:
        """The shape as JAX reads it."""
        return f"({', '.join(map(str, self.shape))})"


@dataclasses.dataclass(frozen=True)
class Program:
    """A function of images, the preprocessing and the weights of a network.

    Attributes:
      function: takes `variables` and the inputs, and gives the outputs by name.
      variables: the weights.
      inputs: what the function takes after them.
      outputs: what it gives.
      constraints: on the names in the inputs' shapes, as JAX reads them.
      preprocessing: what is done to images, before the program and in it.
    """

    function: Callable[..., dict[str, jax.Array]]
    variables: Any
    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]
    constraints: tuple[str, ...]
    preprocessing: dict[str, Any]


def make_program(
    predictor: Predictor, size: Size = None, *, logits: bool = False
) -> Program:
    """Returns the program of a trained network.

    Args:
      predictor: the network.
      size: of the images that the program takes. None: those of the evaluation, of a
        classifier resized and cropped; of one that segments in the upper left corner
        of its canvas, with their sizes beside them.
      logits: of a network that segments, whether to give logits beside the classes.

    Raises:
      UserError: if there are no logits to choose, or images would not fit the canvas.
    """
    if predictor.segments:
        return _segmentation(predictor, size, logits)
    if logits:
        raise UserError("--logits: a classifier's program gives them as it is")
    return _classification(predictor, size)


def _classification(predictor: Predictor, size: Size) -> Program:
    model, data = predictor.model, predictor.task.config.data
    classes = len(predictor.task.class_names)
    side, resize = data.image_size, data.eval_resize or data.image_size
    crop = (
        f"short side to {resize} pixels, bilinear with antialiasing as Pillow's; then "
        f"the central {side} x {side}"
    )

    def function(variables: Any, images: jax.Array) -> dict[str, jax.Array]:
        if size:
            images = center_crop(images, side, resize)
        found = model.apply(variables, normalize(images, data), train=False)
        found = found.astype(jnp.float32)
        return {"logits": found, "probabilities": jax.nn.softmax(found)}

    shape = ("batch", *(size or (side, side)), 3)
    meaning = "decoded RGB images" if size else "RGB images, resized and cropped"
    outputs = (
        Array("logits", "float32", ("batch", classes), "by class"),
        Array("probabilities", "float32", ("batch", classes), "their softmax"),
    )
    return Program(
        function,
        predictor.variables,
        (Array("images", "uint8", shape, meaning),),
        outputs,
        (),
        _steps(data, "" if size else crop, crop if size else ""),
    )


def _segmentation(predictor: Predictor, size: Size, logits: bool) -> Program:
    task, config = predictor.task, predictor.task.config
    canvas = eval_canvas(config)
    constraints = ()
    if size == ANY:
        pairs = zip(ANY, canvas, strict=True)
        constraints = tuple(f"{name} <= {most}" for name, most in pairs)
    elif size and (size[0] > canvas[0] or size[1] > canvas[1]):
        raise UserError(
            f"--input_size {size[0]}x{size[1]}: does not fit the evaluation's canvas "
            f"of {canvas[0]}x{canvas[1]}; shrink the images first, or set "
            f"--config.segmentation.eval_canvas=[{size[0]},{size[1]}]"
        )

    def function(
        variables: Any, images: jax.Array, sizes: jax.Array | None = None
    ) -> dict[str, jax.Array]:
        batch, height, width, _ = images.shape
        if sizes is None:
            room = ((0, canvas[0] - height), (0, canvas[1] - width))
            images = jnp.pad(images, ((0, 0), *room, (0, 0)))
            sides = [jnp.asarray(side, jnp.int32) for side in (height, width)]
            sizes = jnp.broadcast_to(jnp.stack(sides), (batch, 2))
        apply = functools.partial(predictor.model.apply, variables, train=False)
        found = task.predict(apply, images, sizes, with_logits=logits)
        outputs = {"classes": found.classes}
        if logits:
            outputs["logits"] = found.logits
        return {name: maps[:, :height, :width] for name, maps in outputs.items()}

    shape = ("batch", *(size or canvas))
    corner = "in the upper left corner of a canvas"
    images = Array(
        "images",
        "uint8",
        (*shape, 3),
        f"RGB images{'' if size else f', each {corner}'}",
    )
    sizes = Array("sizes", "int32", ("batch", 2), "height and width of each image")
    beyond = "" if size else f"; {IGNORE} beyond an image"
    outputs = [Array("classes", "uint8", shape, f"of each pixel, by index{beyond}")]
    if logits:
        meaning = "logarithms of the classes' probabilities"
        shape = (*shape, len(task.class_names))
        outputs.append(Array("logits", "float32", shape, meaning))
    settings = config.segmentation
    side = settings.short_side
    inside = (
        f"in a canvas of {canvas[0]} x {canvas[1]}; "
        f"{f'short side to {side} pixels, ' if side else ''}to the network's input of "
        f"{settings.eval_size[0] or canvas[0]} x {settings.eval_size[1] or canvas[1]}, "
        f"at scales {list(settings.eval_scales)}"
        f"{', mirrored too' if settings.eval_flip else ''}"
    )
    return Program(
        function,
        predictor.variables,
        (images,) if size else (images, sizes),
        tuple(outputs),
        constraints,
        _steps(config.data, "", inside),
    )


def _steps(data: Any, before: str, inside: str) -> dict[str, Any]:
    """Returns what is done to images, before the program and in it."""
    normal = "levels / 255, less the mean, over std"
    return {
        "before": f"decoded to RGB{f'; {before}' if before else ''}",
        "inside": f"{inside}; {normal}" if inside else normal,
        "mean": list(data.mean),
        "std": list(data.std),
    }
