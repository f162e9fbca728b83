"""Predictor: a trained network that takes images as files, bytes or arrays."""

import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from vt_flax.data import augment
from vt_flax.data.augment.scaled import eval_inputs
from vt_flax.errors import UserError
from vt_flax.inference import token_maps
from vt_flax.inference.predictions import Prediction, classified, segmented
from vt_flax.inference.reading import ImageLike, each_image, read_picture
from vt_flax.inference.token_maps import TokenMaps
from vt_flax.inference.views import View, view_of
from vt_flax.paths import local_folder
from vt_flax.training.checkpoint import Checkpoints
from vt_flax.training.config import resolve
from vt_flax.training.run import model_for
from vt_flax.training.state import differing_array
from vt_flax.training.tasks import Task, task_of
from vt_flax.training.tasks.segmentation import Segmentation
from vt_flax.training.weights import read_weights, variable_shapes
from vt_flax.training.workdir import read_run

# One or many images; views are used as they are.
Images = ImageLike | View | Iterable[ImageLike | View]


@dataclasses.dataclass(frozen=True)
class TokenAttention:
    """Attention maps of tokens, and the images as the network gets them.

    Attributes:
      images: each (h, w, 3), uint8, without padding.
      coverage: for each image its fraction of the input's height and width.
      tokens: by module; see `TokenMaps`.
    """

    images: Sequence[np.ndarray]
    coverage: Sequence[tuple[float, float]]
    tokens: dict[str, TokenMaps]


class Predictor:
    """A trained network.

    Its methods take one or many images: the path of a file or of a folder; a pattern
    such as `shots/*.png`; an encoded image as bytes, or a file that is open for
    reading; an image of Pillow's; an array, uint8, (H, W) or (H, W, channels), or
    (images, H, W, channels); or a list or an iterator of these. They may have any size
    and mode. `UserError` is raised for anything else, with the image's path, or `image
    I` by its index.

    Images are turned upright by their EXIF orientation; `ignore_orientation` uses them
    as they are stored, as training does with those of TFDS datasets.

    Images are processed in batches of one size, the last one padded, so that one
    program is compiled; and another for a single image, if one comes first.

    Attributes:
      model: the network.
      variables: its weights, on the device.
      task: the task that it is trained for.
      title: description of the checkpoint.
      batch: number of images at a time.
      step: training step of the weights.
      averaged: whether the weights are an EMA.
      class_names: names of its classes, in order.
      segments: whether it predicts a class for each pixel, not for each image.
    """

    def __init__(
        self,
        model: nn.Module,
        variables: Any,
        task: Task,
        title: str,
        batch: int = 8,
        step: int = 0,
        averaged: bool = False,
    ):
        if batch < 1:
            raise UserError(f"batch {batch!r}: must be at least 1")
        self.model, self.task, self.title, self.batch = model, task, title, batch
        self.step, self.averaged = step, averaged
        self.class_names = task.class_names
        self.segments = isinstance(task, Segmentation)
        self.variables = jax.device_put(variables)
        self._compiled: set[int] = set()
        self._predict = jax.jit(self._segment if self.segments else self._classify)
        self._features = jax.jit(self._compute_features)
        self._attention = jax.jit(self._compute_maps)

    def __repr__(self) -> str:
        """Returns the checkpoint and the number of classes."""
        return f"<Predictor of {self.title}, {len(self.class_names)} classes>"

    @functools.cached_property
    def tokenizers(self) -> dict[str, str]:
        """The kind of each VT module's tokenizer; see `TokenMaps`."""
        return token_maps.tokenizer_kinds(self.model)

    def predict(
        self, images: Images, *, ignore_orientation: bool = False
    ) -> list[Prediction]:
        """Returns a list of predictions, also for a single image.

        In classification they hold the probabilities of all classes; in segmentation a
        mask at the image's own size, and the fractions of its classes.
        """
        make = segmented if self.segments else classified
        return [
            make(view, self.class_names, *outputs)
            for views, batch in self._batches(self._predict, images, ignore_orientation)
            for view, *outputs in zip(views, *batch, strict=True)
        ]

    def features(
        self, images: Images, *, ignore_orientation: bool = False
    ) -> dict[str, np.ndarray]:
        """Returns the feature maps of the stages, and the tokens of a VT-ResNet.

        Returns:
          By name, float32: C2 to C5 (images, h, w, channels), as far as a network has
          them; P2 to P5 of a pyramid; `tokens` (images, L, C_T).
        """
        batches = self._batches(self._features, images, ignore_orientation)
        parts = [found for _, found in batches]
        return {
            name: np.concatenate([np.asarray(p[name], np.float32) for p in parts])
            for name in (parts[0] if parts else ())
        }

    def tokens(
        self, images: Images, *, ignore_orientation: bool = False
    ) -> dict[str, TokenMaps]:
        """Returns attention maps of tokens by module: `module1`, or `level2`.

        A network that is no VT has none. In segmentation the maps are those of the
        network's whole input, also where that is larger than an image.
        """
        return self.attention(images, ignore_orientation=ignore_orientation).tokens

    def attention(
        self, images: Images, *, ignore_orientation: bool = False
    ) -> TokenAttention:
        """Returns attention maps as `tokens` does, and the network's inputs."""
        shown, coverage, maps = [], [], []
        batches = self._batches(self._attention, images, ignore_orientation)
        for _, (found, levels, lengths) in batches:
            levels = np.clip(levels + 0.5, 0, 255).astype(np.uint8)
            whole = levels.shape[1:3]
            maps.append(found)
            for image, (height, width) in zip(levels, lengths, strict=True):
                shown.append(image[:height, :width])
                coverage.append((float(height / whole[0]), float(width / whole[1])))
        joined = {
            path: np.concatenate([part[path] for part in maps])
            for path in (maps[0] if maps else ())
        }
        kinds = self.tokenizers if maps else {}
        return TokenAttention(shown, coverage, token_maps.by_module(joined, kinds))

    def _batches(
        self, function: Callable, images: Images, ignore_orientation: bool
    ) -> Iterator[tuple[list[View], Any]]:
        """Yields the views of a batch at a time, and a function's outputs for them."""
        views = (
            image
            if isinstance(image, View)
            else view_of(
                read_picture(image, name, ignore_orientation=ignore_orientation),
                self.task,
            )
            for name, image in each_image(images)
        )
        while some := list(itertools.islice(views, self.batch)):
            count = len(some)
            fitting = [size for size in self._compiled if size >= count]
            size = min(fitting, default=1 if count == 1 else self.batch)
            self._compiled.add(size)
            padded = some + [some[-1]] * (size - count)
            # The caller's program may have turned 64 bits on.
            with jax.enable_x64(False):
                found = function(
                    self.variables,
                    np.stack([view.pixels for view in padded]),
                    np.asarray([view.lengths for view in padded], np.int32),
                )
                found = jax.device_get(found)
            yield some, jax.tree.map(lambda x, n=count: x[:n], found)

    def _classify(
        self, variables: Any, images: jax.Array, _: jax.Array
    ) -> tuple[jax.Array]:
        """Returns probabilities, (batch, classes)."""
        return (jax.nn.softmax(self._apply(variables, self._normalize(images))),)

    def _segment(
        self, variables: Any, images: jax.Array, lengths: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns classes, (batch, h, w), and mean probabilities, (batch,)."""
        found = self.task.predict(lambda x: self._apply(variables, x), images, lengths)
        return found.classes, found.probs.sum((1, 2)) / lengths.prod(1)

    def _compute_features(
        self, variables: Any, images: jax.Array, lengths: jax.Array
    ) -> dict[str, jax.Array]:
        levels, _ = self._levels(images, lengths)
        return self._apply(variables, self._normalize(levels), features=True)

    def _compute_maps(
        self, variables: Any, images: jax.Array, lengths: jax.Array
    ) -> tuple[token_maps.Sown, jax.Array, jax.Array]:
        levels, lengths = self._levels(images, lengths)
        inputs = self._normalize(levels)
        return token_maps.sown_maps(self.model, variables, inputs), levels, lengths

    def _levels(
        self, images: jax.Array, lengths: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the network's input before normalization, and lengths in it."""
        if not self.segments:
            return images, lengths
        return tuple(eval_inputs(images, lengths, self.task.config))

    def _normalize(self, levels: jax.Array) -> jax.Array:
        return augment.normalize(levels, self.task.config.data)

    def _apply(self, variables: Any, inputs: jax.Array, **options: Any) -> Any:
        return self.model.apply(variables, inputs, train=False, **options)


def load(
    workdir: str | os.PathLike,
    overrides: Sequence[str] = (),
    *,
    step: int | None = None,
    best: bool = False,
    batch: int = 8,
) -> Predictor:
    """Loads the trained network of a workdir. Its dataset is not needed.

    EMA weights are used if there are any. For example:

      network = vt_flax.load("runs/quickstart")
      (digit,) = network.predict("digit.png")
      digit.scores[0]  # ("7", 0.98)

    Args:
      workdir: folder of a run, or one that `import_weights` has made.
      overrides: changes of its configuration, as in
        `["--config.segmentation.eval_flip=True"]`.
      step: step of the checkpoint; None for the newest, or the best.
      best: whether the best checkpoints are meant.
      batch: number of images at a time.

    Raises:
      UserError: if there is no run, or no such checkpoint, or it cannot be read.
    """
    workdir = local_folder("workdir", workdir)
    record = read_run(workdir)
    config = resolve(ConfigDict(record.config), overrides)
    checkpoints = Checkpoints(workdir, read_only=True, best=best)
    step = checkpoints.choose(step)
    checkpoints.close()
    weights, name = read_weights("--workdir", checkpoints.folder / str(step))
    task = task_of(config)(config, record.class_names, record.mirrored)
    model = model_for(config, len(task.class_names))
    if any(override.startswith("--config.model.") for override in overrides):
        shapes = variable_shapes(model, task.input_size(config))
        if path := differing_array(weights, shapes):
            raise UserError(
                f"{path} of {workdir} has another shape than this {config.model.name}'s"
                ": leave out the overrides of config.model"
            )
    title = f"{config.model.name}, step {step:,} of {workdir}, {name} weights"
    return Predictor(model, weights, task, title, batch, step, name == "ema")
