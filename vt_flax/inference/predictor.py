"""A trained network and what it says of images."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image, ImageOps

from vt_flax.analysis import masks, plots
from vt_flax.data import augment, images
from vt_flax.data.augment.scaled import eval_canvas, eval_inputs
from vt_flax.data.host import tensorflow
from vt_flax.errors import UserError
from vt_flax.inference import token_maps
from vt_flax.training.checkpoint import Checkpoints, read_run
from vt_flax.training.config import resolve
from vt_flax.training.run import model_for
from vt_flax.training.tasks import Task, task_of
from vt_flax.training.tasks.segmentation import Segmentation
from vt_flax.training.weights import read_weights


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a network says of an image.

    Attributes:
      shares: classes, the likeliest or largest first, each with its probability or its
        share of the pixels.
      mask: class indices (H, W), uint8, at the image's own size; None of a classifier.
    """

    shares: Sequence[tuple[str, float]]
    mask: np.ndarray | None = None


class Predictor:
    """A trained network.

    Args:
      model: the network.
      variables: its weights.
      task: what it is trained for.
      title: which checkpoint it is.

    Attributes:
      model, task, title: as given.
      variables: the weights, on the device.
      segments: whether it says a class of each pixel rather than of each image.
    """

    def __init__(self, model: nn.Module, variables: Any, task: Task, title: str):
        self.model, self.task, self.title = model, task, title
        self.segments = isinstance(task, Segmentation)
        self.variables = jax.device_put(variables)
        self._run = jax.jit(self._segment if self.segments else self._classify)

    @property
    def has_tokens(self) -> bool:
        """Whether there are token coefficients to draw."""
        size = self.task.input_size(self.task.config)
        return token_maps.has_coefficients(self.model, self.variables, size)

    def read(self, file: pathlib.Path) -> Image.Image:
        """Reads an image as a person sees it, turned as its camera was.

        Raises:
          UserError: if it is no image.
        """
        try:
            encoded = file.read_bytes()
            with Image.open(file) as stored:
                turned = ImageOps.exif_transpose(stored)
                same = turned.size == stored.size and "transposition" not in stored.info
            if not same:
                return turned.convert("RGB")
            return images.decode_with_pillow(encoded)
        except OSError as error:
            raise UserError(
                f"{file}: {error.strerror or 'not a readable image'}"
            ) from error
        except Exception as error:
            # Pillow's plugins raise ValueError, SyntaxError, struct.error and more.
            raise UserError(f"{file}: not a readable image ({error})") from error

    def predict(self, image: Image.Image) -> Prediction:
        """Returns what the network says of an image."""
        names = self.task.class_names
        if not self.segments:
            probabilities = np.asarray(self._run(self.variables, self._cropped(image)))
            order = np.argsort(-probabilities, kind="stable")
            return Prediction([(names[i], float(probabilities[i])) for i in order])
        array, size = self._placed(image)
        mask = np.asarray(self._run(self.variables, array, size))
        height, width = size[0]
        mask = Image.fromarray(mask[:height, :width])
        mask = np.asarray(mask.resize(image.size, Image.Resampling.NEAREST))
        counts = np.bincount(mask.ravel(), minlength=len(names))[: len(names)]
        order = [i for i in np.argsort(-counts, kind="stable") if counts[i]]
        return Prediction([(names[i], counts[i] / mask.size) for i in order], mask)

    def draw(
        self,
        folder: pathlib.Path,
        name: str,
        image: Image.Image,
        found: Prediction,
        *,
        tokens: bool,
    ) -> None:
        """Draws a prediction to `folder/name.png`, tokens to `folder/name_tokens.png`.

        Args:
          folder: for the pictures.
          name: of the image.
          image: what the prediction is of.
          found: the prediction.
          tokens: whether to draw tokens too, of a network that `has_tokens`.

        Raises:
          OSError: if a file cannot be written.
        """
        if found.mask is not None:
            masks.draw_mask(
                folder / f"{name}.png",
                np.asarray(image),
                found.mask,
                self.task.class_names,
            )
        if tokens:
            plots.draw_rows(folder / f"{name}_tokens.png", self._token_rows(image))

    def _token_rows(self, image: Image.Image) -> list[plots.TokenRow]:
        config = self.task.config
        if self.segments:
            array, size = self._placed(image)
            view = eval_inputs(array, size, config)
            inputs = np.asarray(view.images)
            height, width = np.asarray(view.lengths)[0]
        else:
            inputs = self._cropped(image)
            height, width = inputs.shape[1:3]
        maps = token_maps.token_coefficients(
            self.model, self.variables, augment.normalise(inputs, config.data)
        )
        shown = np.clip(inputs[0, :height, :width] + 0.5, 0, 255).astype(np.uint8)
        return [
            plots.TokenRow(
                part,
                shown,
                np.stack(
                    [_part(m, inputs.shape[1:3], height, width) for m in found[0]]
                ),
                "token {}" if i == 0 else "",
            )
            for i, (part, found) in enumerate(maps.items())
        ]

    def _cropped(self, image: Image.Image) -> np.ndarray:
        """Returns an image as it is evaluated, (1, size, size, 3)."""
        data = self.task.config.data
        tf = tensorflow()
        encoded = tf.io.encode_png(np.asarray(image))
        crop = images.eval_crop(data)(encoded, tf.zeros(2, tf.int64))
        return crop.numpy()[None]

    def _placed(self, image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
        """Returns an image in evaluation's canvas, shrunk to it if it is larger."""
        height, width = eval_canvas(self.task.config)
        if image.width > width or image.height > height:
            image = ImageOps.contain(image, (width, height), Image.Resampling.BILINEAR)
        canvas = np.zeros((1, height, width, 3), np.uint8)
        canvas[0, : image.height, : image.width] = np.asarray(image)
        return canvas, np.asarray([[image.height, image.width]], np.int32)

    def _classify(self, variables: Any, inputs: jax.Array) -> jax.Array:
        inputs = augment.normalise(inputs, self.task.config.data)
        return jax.nn.softmax(self.model.apply(variables, inputs, train=False))[0]

    def _segment(self, variables: Any, inputs: jax.Array, size: jax.Array):
        classes, _ = self.task.predict(
            lambda x: self.model.apply(variables, x, train=False), inputs, size
        )
        return classes[0]


def load(
    workdir: pathlib.Path,
    overrides: Sequence[str] = (),
    *,
    step: int | None = None,
    best: bool = False,
) -> Predictor:
    """Loads the network of a workdir. Its dataset is not needed.

    Args:
      workdir: folder of a run.
      overrides: of its configuration, as in `--config.segmentation.eval_flip=True`.
      step: of the checkpoint; None for the newest, or the best.
      best: whether the best checkpoints are meant.

    Raises:
      UserError: if there is no run, or no such checkpoint, or it cannot be read.
    """
    content = read_run(workdir)
    config = resolve(ConfigDict(content["config"]), overrides)
    checkpoints = Checkpoints(workdir, read_only=True, best=best)
    step = checkpoints.choose(step)
    checkpoints.close()
    weights, name = read_weights("--workdir", checkpoints.folder / str(step))
    task = task_of(config)(config, content["class_names"], content["mirrored"])
    model = model_for(config, len(task.class_names))
    title = f"{config.model.name}, step {step:,} of {workdir}, {name} weights"
    return Predictor(model, weights, task, title)


def _part(
    map_: np.ndarray, shape: Sequence[int], height: int, width: int
) -> np.ndarray:
    """Returns the part of a map of a whole input that lies on the image in it."""
    whole = Image.fromarray(map_).resize(
        (shape[1], shape[0]), Image.Resampling.BILINEAR
    )
    return np.asarray(whole)[:height, :width]
