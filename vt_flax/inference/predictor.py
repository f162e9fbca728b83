"""Predictor: a trained network that takes images as files, bytes or arrays."""

import contextlib
import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from vt_flax.data import augment
from vt_flax.data.augment.scaled import eval_canvas, eval_inputs
from vt_flax.errors import UserError
from vt_flax.inference import token_maps
from vt_flax.inference.predictions import Prediction, classified, segmented
from vt_flax.inference.reading import ImageLike, each_image, read_picture
from vt_flax.inference.token_maps import TokenMaps
from vt_flax.inference.views import View, view_of
from vt_flax.paths import local_folder
from vt_flax.texts import printable
from vt_flax.training.checkpoint import Checkpoints
from vt_flax.training.config import resolve
from vt_flax.training.run import model_for
from vt_flax.training.state import differing_array
from vt_flax.training.tasks import Task, task_of
from vt_flax.training.tasks.segmentation import Segmentation
from vt_flax.training.weights import read_weights, variable_shapes
from vt_flax.training.workdir import read_run

# One or many, read already or not.
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

    Where a method takes images, that is one or many of these: the path of a file, of a
    folder, or a pattern such as `shots/*.png`; an encoded image as bytes, or a file
    that is open for them; an image of Pillow's; an array, uint8, (H, W) or (H, W,
    channels), or (images, H, W, channels). In a list, an iterator or an object array
    they may be mixed. They may have any size and mode. What is no image raises
    `UserError`, with its name: its path, or `image I` by its place in the list.

    So many images at a time go through one compiled program, the last ones with others
    in the empty places; a program for a single image is made where one comes first.

    Images are turned upright by their EXIF orientation; with `ignore_orientation` they
    are used as they are stored, as those of TFDS datasets are in training.

    Args:
      model: the network.
      variables: its weights.
      task: what it is trained for.
      title: which checkpoint it is.
      batch: images at a time.
      step: training step of the weights.
      averaged: whether the weights are an EMA.

    Attributes:
      model, task, title, batch, step, averaged: as given.
      variables: the weights, on the device.
      class_names: of its classes, in order.
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
        if not isinstance(batch, (int, np.integer)) or batch < 1:
            raise UserError(f"batch {batch!r}: must be at least 1")
        self.model, self.task, self.title, self.batch = model, task, title, batch
        self.step, self.averaged = step, averaged
        self.class_names = task.class_names
        self.segments = isinstance(task, Segmentation)
        self.variables = jax.device_put(variables)
        self._compile()

    def _compile(self) -> None:
        self._compiled: set[int] = set()
        self._predict = jax.jit(self._segment if self.segments else self._classify)
        self._features = jax.jit(self._compute_features)
        self._attention = jax.jit(self._compute_maps)

    def __repr__(self) -> str:
        """Says which network it is, of how many classes, with which weights."""
        names = ", ".join(printable(name[:30]) for name in self.class_names[:3])
        more = ", ..." if len(self.class_names) > 3 else ""
        height, width = self._input_size
        return (
            f"<Predictor {self.task.config.model.name}: {len(self.class_names)} "
            f"classes ({names}{more}), input {height} x {width}, step {self.step:,}, "
            f"{'EMA' if self.averaged else 'raw'} weights>"
        )

    def __getstate__(self) -> dict[str, Any]:
        """Returns what `pickle` and `copy.deepcopy` keep: all but compiled programs."""
        state = dict(vars(self))
        for name in ("_compiled", "_predict", "_features", "_attention"):
            del state[name]
        return state | {"variables": jax.device_get(self.variables)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Puts the weights on the device; programs are compiled when they are used."""
        vars(self).update(state)
        self.variables = jax.device_put(self.variables)
        self._compile()

    @functools.cached_property
    def tokenizers(self) -> dict[str, str]:
        """The kind of each VT module's tokenizer; see `TokenMaps`."""
        return token_maps.tokenizer_kinds(self.model)

    @property
    def has_tokens(self) -> bool:
        """Whether there are token coefficients; a pooling tokenizer has none."""
        return any(kind != "pooling" for kind in self.tokenizers.values())

    def view(self, image: ImageLike, *, ignore_orientation: bool = False) -> View:
        """Returns an image as evaluation would have it; every method takes it too."""
        found = list(itertools.islice(each_image(image), 2))
        if len(found) != 1:
            number = "several images" if found else "no image"
            raise UserError(f"view takes one image, not {number}")
        return self._view(*found[0], ignore_orientation)

    def predict(
        self, images: Images, *, ignore_orientation: bool = False
    ) -> list[Prediction]:
        """Returns a list of predictions, also for a single image.

        Classes with their probabilities, or with their shares of the pixels, and masks
        at each image's own size; see `Prediction`.
        """
        found = []
        for views, outputs in self._batches(self._predict, images, ignore_orientation):
            for view, *own in zip(views, *outputs, strict=True):
                make = segmented if self.segments else classified
                found.append(make(view, self.class_names, *own))
        return found

    def features(
        self, images: Images, *, ignore_orientation: bool = False
    ) -> dict[str, np.ndarray]:
        """Returns the maps of the stages, and the tokens of networks that have them.

        Returns:
          By name, float32: C2 to C5 (images, h, w, channels), as far as a network has
          them; those of a pyramid, P2 to P5; `tokens` (images, L, C_T).
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

    def _view(self, name: str, image: Any, ignore_orientation: bool) -> View:
        if isinstance(image, View):
            return image
        picture = read_picture(image, name, ignore_orientation=ignore_orientation)
        return view_of(picture, self.task)

    def _batches(
        self, function: Callable, images: Images, ignore_orientation: bool
    ) -> Iterator[tuple[list[View], Any]]:
        """Yields views of images, a batch at a time, and what a function makes of them.

        What it makes of the places that are filled up is cut off.
        """
        views = (
            self._view(name, image, ignore_orientation)
            for name, image in each_image(images)
        )
        while some := list(itertools.islice(views, self.batch)):
            count = len(some)
            fitting = [size for size in self._compiled if size >= count]
            size = min(fitting, default=1 if count == 1 else self.batch)
            self._compiled.add(size)
            filled = some + [some[-1]] * (size - count)
            # The same results whatever the program around it computes in.
            with jax.enable_x64(False):
                found = function(
                    self.variables,
                    np.stack([view.pixels for view in filled]),
                    np.asarray([view.lengths for view in filled], np.int32),
                )
                found = jax.device_get(found)
            yield some, jax.tree.map(lambda x, n=count: x[:n], found)

    def _classify(self, variables: Any, images: jax.Array, _: jax.Array):
        logits = self._apply(variables, augment.normalize(images, self._data))
        return (jax.nn.softmax(logits),)

    def _segment(self, variables: Any, images: jax.Array, lengths: jax.Array):
        found = self.task.predict(lambda x: self._apply(variables, x), images, lengths)
        return found.classes, found.probs.sum((1, 2)) / lengths.prod(1)

    def _compute_features(
        self, variables: Any, images: jax.Array, lengths: jax.Array
    ) -> dict[str, jax.Array]:
        levels, _ = self._inputs(images, lengths)
        inputs = augment.normalize(levels, self._data)
        return self._apply(variables, inputs, features=True)

    def _compute_maps(
        self, variables: Any, images: jax.Array, lengths: jax.Array
    ) -> tuple[token_maps.Sown, jax.Array, jax.Array]:
        levels, lengths = self._inputs(images, lengths)
        inputs = augment.normalize(levels, self._data)
        return token_maps.sown_maps(self.model, variables, inputs), levels, lengths

    def _inputs(
        self, images: jax.Array, lengths: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns levels of the network's input, and each image's lengths in it."""
        if not self.segments:
            return images, lengths
        return tuple(eval_inputs(images, lengths, self.task.config))

    def _apply(self, variables: Any, inputs: jax.Array, **options: Any) -> Any:
        return self.model.apply(variables, inputs, train=False, **options)

    @property
    def _input_size(self) -> tuple[int, int]:
        """Height and width of what the network is given."""
        config = self.task.config
        return eval_canvas(config) if self.segments else self.task.input_size(config)

    @property
    def _data(self) -> ConfigDict:
        return self.task.config.data


def load(
    workdir: str | os.PathLike,
    overrides: Sequence[str] = (),
    *,
    step: int | None = None,
    best: bool = False,
    batch: int = 8,
) -> Predictor:
    """Loads the trained network of a workdir. Its dataset is not needed.

    Averaged weights are taken where there are any. For example:

      network = vt_flax.load("runs/quickstart")
      (digit,) = network.predict("digit.png")
      digit.scores[0]  # ("7", 0.98)
      tokens = network.tokens(["digit.png", "another.jpg"])
      tokens["module1"].kind  # "static"
      tokens["module1"].coefficients.shape  # (2, 1, 8, 8, 8)
      network.features("digit.png")["C4"].shape  # (1, 8, 8, 64)

    Args:
      workdir: folder of a run, or one that `import_weights` has made.
      overrides: of its configuration, as in `--config.segmentation.eval_flip=True`.
      step: of the checkpoint; None for the newest, or the best.
      best: whether the best checkpoints are meant.
      batch: images at a time.

    Returns:
      The network; see `Predictor`.

    Raises:
      UserError: if there is no run, or no such checkpoint, or it cannot be read.
    """
    if isinstance(overrides, str):
        overrides = [overrides]
    if not isinstance(overrides, (list, tuple)):
        raise UserError(
            f"overrides {overrides!r}: pass a list, as in "
            "['--config.data.eval_resize=0']"
        )
    workdir = local_folder("workdir", os.fspath(workdir))
    record = read_run(workdir)
    config = resolve(ConfigDict(record.config), overrides)
    with _without_warnings():
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


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Silences the warnings of Orbax about a read-only folder."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(min(verbosity, logging.ERROR))
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
