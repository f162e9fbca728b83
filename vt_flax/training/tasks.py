"""What a network is trained for: loss and metrics, apart from its architecture."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from vt_flax.data.augment import Targets


def classification_loss(
    logits: jax.Array, labels: jax.Array, config: ConfigDict
) -> jax.Array:
    """Cross-entropy with label smoothing (Szegedy et al., 2015).

    Args:
      logits: (batch, classes), float32.
      labels: (batch,), class indices.
      config: the section `loss`.

    Returns:
      (batch,): the loss of each example.
    """
    targets = optax.smooth_labels(
        jax.nn.one_hot(labels, logits.shape[-1]), config.label_smoothing
    )
    return optax.softmax_cross_entropy(logits, targets)


def mixed_loss(logits: jax.Array, targets: Targets, config: ConfigDict) -> jax.Array:
    """Returns the loss of examples with several weighted labels, (batch,).

    Cross-entropy is linear in its target: the loss of a mixture is that of its parts.
    """
    return _weighted(
        targets, lambda labels: classification_loss(logits, labels, config)
    )


def mixed_top1(logits: jax.Array, targets: Targets) -> jax.Array:
    """Returns the weight of the labels that come first, (batch,), float32."""
    return _weighted(targets, lambda labels: label_rank(logits, labels) < 1)


def _weighted(
    targets: Targets, function: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """Sums what a function makes of each label, by the labels' weights."""
    pairs = zip(targets.labels.T, targets.weights.T, strict=True)
    return sum(weights * function(labels) for labels, weights in pairs)


def label_rank(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns how many classes an example puts before its label, (batch,) int32.

    Equal logits are ordered by class index, as `argmax` does. Where any logit is not a
    number the rank is the number of classes, so that nothing counts as right.
    """
    classes = jnp.arange(logits.shape[-1])
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    before = (logits > own) | ((logits == own) & (classes < labels[:, None]))
    rank = jnp.sum(before, axis=-1, dtype=jnp.int32)
    return jnp.where(jnp.isnan(logits).any(-1), logits.shape[-1], rank)


def classification_counts(
    logits: jax.Array, labels: jax.Array, mask: jax.Array
) -> dict[str, jax.Array]:
    """Sums over a batch from which the metrics of a whole split are made.

    Args:
      logits: (batch, classes), float32.
      labels: (batch,), class indices.
      mask: (batch,), False for places that hold no example.

    Returns:
      `examples`, `top1`, `top5`: counts, int32; `loss`: summed cross-entropy, without
      label smoothing.
    """
    rank = label_rank(logits, labels)
    five = min(5, logits.shape[-1])
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return {
        "examples": jnp.sum(mask, dtype=jnp.int32),
        "top1": jnp.sum(mask & (rank < 1), dtype=jnp.int32),
        "top5": jnp.sum(mask & (rank < five), dtype=jnp.int32),
        "loss": jnp.sum(jnp.where(mask, loss, 0.0)),
    }
