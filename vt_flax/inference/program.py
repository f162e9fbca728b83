"""A trained network as one function of decoded images, for use without this package."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vt_flax.data.augment import normalize
from vt_flax.data.augment.resampling import center_crop
from vt_flax.data.augment.scaled import eval_canvas
from vt_flax.errors import UserError
from vt_flax.inference.predictor import Predictor

# Symbolic height and width, of an input that may be of any size.
ANY = ("height", "width")

# Height and width in pixels, or ANY; None for the size of the evaluation.
Size = tuple[int, int] | tuple[str, str] | None


@dataclasses.dataclass(frozen=True)
class Array:
    """The input or an output of a program.

    Attributes:
      name: its name.
      dtype: name of its type.
      shape: numbers, and names of what may be any number: `batch`, `height`, `width`.
      meaning: a description for people.
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
    """A function of images, with the preprocessing and the weights of a network.

    Attributes:
      function: takes `variables` and `images`, and returns the outputs by name.
      variables: the weights.
      images: the input.
      outputs: outputs of the function.
      constraints: on the symbolic sizes of the images, as JAX reads them.
    """

    function: Callable[[Any, jax.Array], dict[str, jax.Array]]
    variables: Any
    images: Array
    outputs: tuple[Array, ...]
    constraints: tuple[str, ...] = ()


def make_program(
    predictor: Predictor, size: Size = None, *, logits: bool = False
) -> Program:
    """Returns the program of a trained network.

    Args:
      predictor: the network.
      size: size of the images that the program takes. None means the evaluation's: a
        classifier takes resized and cropped images, a segmentation network images of
        the size of its canvas.
      logits: whether a segmentation network returns logits beside the classes.

    Raises:
      UserError: if logits are asked of a classifier, or images would not fit the
        canvas.
    """
    model = predictor.model
    if "formulation" in model.__dataclass_fields__:
        # Pallas's kernels need a known batch size, and JAX does not promise that later
        # versions read programs that contain them.
        model = model.clone(formulation="folded")
    if predictor.segments:
        return _segmentation(predictor, model, size, logits)
    if logits:
        raise UserError("--logits: a classifier's program returns them anyway")
    return _classification(predictor, model, size)


def _classification(predictor: Predictor, model: nn.Module, size: Size) -> Program:
    data = predictor.task.config.data
    side, resize = data.image_size, data.eval_resize or data.image_size

    def function(variables: Any, images: jax.Array) -> dict[str, jax.Array]:
        if size:
            images = center_crop(images, side, resize)
        found = model.apply(variables, normalize(images, data), train=False)
        found = found.astype(jnp.float32)
        return {"logits": found, "probabilities": jax.nn.softmax(found)}

    meaning = "RGB images"
    if not size:
        meaning += f", short side resized to {resize} pixels, then center-cropped"
    shape = ("batch", *(size or (side, side)), 3)
    scores = "float32", ("batch", len(predictor.class_names))
    return Program(
        function,
        predictor.variables,
        Array("images", "uint8", shape, meaning),
        (
            Array("logits", *scores, "by class"),
            Array("probabilities", *scores, "by class"),
        ),
    )


def _segmentation(
    predictor: Predictor, model: nn.Module, size: Size, logits: bool
) -> Program:
    task = predictor.task
    canvas = eval_canvas(task.config)
    constraints: tuple[str, ...] = ()
    if size == ANY:
        pairs = zip(ANY, canvas, strict=True)
        constraints = tuple(f"{name} <= {most}" for name, most in pairs)
    elif size and (size[0] > canvas[0] or size[1] > canvas[1]):
        raise UserError(
            f"--input_size {size[0]}x{size[1]}: does not fit the evaluation's canvas "
            f"of {canvas[0]}x{canvas[1]}; shrink the images first, or set "
            f"--config.segmentation.eval_canvas=[{size[0]},{size[1]}]"
        )

    def function(variables: Any, images: jax.Array) -> dict[str, jax.Array]:
        batch, height, width, _ = images.shape
        padding = ((0, canvas[0] - height), (0, canvas[1] - width))
        images = jnp.pad(images, ((0, 0), *padding, (0, 0)))
        sides = [jnp.asarray(side, jnp.int32) for side in (height, width)]
        sizes = jnp.broadcast_to(jnp.stack(sides), (batch, 2))
        apply = functools.partial(model.apply, variables, train=False)
        found = task.predict(apply, images, sizes, with_logits=logits)
        outputs = {"classes": found.classes}
        if logits:
            outputs["logits"] = found.logits
        return {name: maps[:, :height, :width] for name, maps in outputs.items()}

    shape = ("batch", *(size or canvas))
    outputs = [Array("classes", "uint8", shape, "class index of each pixel")]
    if logits:
        by_class = (*shape, len(task.class_names))
        meaning = "logarithms of the classes' probabilities"
        outputs.append(Array("logits", "float32", by_class, meaning))
    return Program(
        function,
        predictor.variables,
        Array("images", "uint8", (*shape, 3), "RGB images"),
        tuple(outputs),
        constraints,
    )
