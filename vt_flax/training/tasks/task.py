"""Interface of a task: inputs, loss and metrics of a kind of network."""

import abc
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from ml_collections import ConfigDict

from vt_flax.data.decoders import Decoder
from vt_flax.data.source import Source

Batch = dict[str, jax.Array]
Apply = Callable[[jax.Array], jax.Array]


class Task(abc.ABC):
    """Inputs, loss and metrics of a network, apart from its architecture.

    Args:
      config: the whole configuration.
      class_names: of the dataset.
      mirrored: class of each class in a mirrored image; empty if none changes.

    Attributes:
      metric: result that selects the best checkpoint; higher is better.
      train_metric: metric of `loss` that progress lines show.
      titles: titles of the results that are in percent, by name.
    """

    metric: str
    train_metric: str
    titles: dict[str, str]

    def __init__(
        self,
        config: ConfigDict,
        class_names: Sequence[str],
        mirrored: Sequence[int] = (),
    ):
        self.config, self.class_names = config, tuple(class_names)
        self.mirrored = tuple(mirrored)

    @staticmethod
    @abc.abstractmethod
    def open_source(config: ConfigDict, split: str) -> Source:
        """Opens a split of the configured dataset.

        Raises:
          UserError: if it is not there, or not for this task.
        """

    @staticmethod
    @abc.abstractmethod
    def input_size(config: ConfigDict) -> tuple[int, int]:
        """Returns height and width of the images that are trained on."""

    @abc.abstractmethod
    def decoder(self, source: Source, *, train: bool) -> Decoder:
        """Returns the decoder of a source's examples."""

    @abc.abstractmethod
    def noise(self, batch: int) -> dict[str, np.ndarray]:
        """Returns random examples of the shapes that reach the device in training."""

    @abc.abstractmethod
    def train_inputs(
        self, batch: Batch, key: jax.Array, sharding: NamedSharding | None
    ) -> tuple[jax.Array, Any]:
        """Augments a training batch, inside the step.

        Args:
          batch: the decoder's fields.
          key: one key for the batch.
          sharding: of the batch; None for a single device.

        Returns:
          Images, float32 (batch, H, W, 3), and the targets of `loss`.
        """

    @abc.abstractmethod
    def loss(
        self, logits: jax.Array, targets: Any, teacher_logits: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns the loss of a batch, and metrics from 0 to 1; all scalars.

        Args:
          logits: of the network.
          targets: see `train_inputs`.
          teacher_logits: of the same images; None without a teacher.
        """

    @abc.abstractmethod
    def counts(self, apply: Apply, batch: Batch) -> dict[str, jax.Array]:
        """Returns sums over a batch, which `results` takes summed over a split.

        Args:
          apply: maps normalized images to logits.
          batch: the decoder's fields, and `mask` (batch,), False for padding.
        """

    @abc.abstractmethod
    def results(self, totals: dict[str, Any]) -> dict[str, float | None]:
        """Returns the results of a split from its NumPy sums, `examples` included."""

    def notes(self, totals: dict[str, Any]) -> list[str]:
        """Returns notes on the split, to print beside its results."""
        return []

    def summary(self, results: dict[str, float]) -> str:
        """Returns results as one line of text."""
        percentages = " ".join(
            f"{title} {results[name]:.2f} %" for name, title in self.titles.items()
        )
        return f"{percentages} loss {results['loss']:.4f}"
