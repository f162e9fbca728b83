"""The loss and the counts of classification against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vt_flax.training.config import default_config
from vt_flax.training.tasks.classification import Classification
from vt_flax.training.tasks.metrics import smoothed_cross_entropy


def draw(batch, classes, seed=0):
    rng = np.random.default_rng(seed)
    logits = (3 * rng.normal(size=(batch, classes))).astype(np.float32)
    return logits, rng.integers(0, classes, batch)


def log_softmax(logits):
    logits = logits.astype(np.float64)
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def ranks(logits, labels):
    """Ranks of the labels among the classes; equal logits in the order of classes."""
    order = np.argsort(-logits.astype(np.float64), axis=-1, kind="stable")
    return np.argmax(order == labels[:, None], axis=-1)


def counts(logits, labels, mask=None):
    mask = np.ones(len(labels), bool) if mask is None else np.asarray(mask)
    task = Classification(default_config(), [""] * logits.shape[-1])
    batch = {"image": np.zeros((len(labels), 1, 1, 3)), "label": labels, "mask": mask}
    found = jax.jit(lambda batch: task.counts(lambda _: logits, batch))(batch)
    return {key: value.item() for key, value in found.items()}


@pytest.mark.parametrize("classes, smoothing", [(2, 0.0), (10, 0.1), (1000, 0.4)])
def test_smoothed_cross_entropy(classes, smoothing):
    """The target is 1 - s for the label, and s / classes more for every class."""
    logits, labels = draw(16, classes)
    target = np.full((16, classes), smoothing / classes)
    target[np.arange(16), labels] += 1 - smoothing
    expected = -(target * log_softmax(logits)).sum(-1)
    out = smoothed_cross_entropy(logits, labels, smoothing)
    assert out.shape == (16,) and out.dtype == np.float32
    np.testing.assert_allclose(out, expected, rtol=2e-5, atol=1e-5)
    # Equal logits cost log(classes), and large ones do not overflow.
    out = smoothed_cross_entropy(jnp.zeros((1, classes)), labels[:1], smoothing)
    assert out.item() == pytest.approx(np.log(classes), rel=1e-6)
    large = smoothed_cross_entropy(1e4 * logits, labels, smoothing)
    assert np.isfinite(large).all()


@pytest.mark.parametrize("classes", [3, 5, 50])
def test_counts(classes):
    logits, labels = draw(64, classes, seed=1)
    rank = ranks(logits, labels)
    found = counts(logits, labels)
    assert found["top1"] == (rank == 0).sum()
    assert found["top5"] == (rank < 5).sum()
    expected = -log_softmax(logits)[np.arange(64), labels].sum()
    assert found["loss"] == pytest.approx(expected, rel=1e-5)


def test_of_equal_logits_the_first_class_counts():
    """A network that gives every class the same is right by chance alone."""
    labels = np.arange(8)
    found = counts(np.zeros((8, 8), np.float32), labels)
    assert (found["top1"], found["top5"]) == (1, 5)
    logits = np.random.default_rng(0).integers(0, 3, (300, 8)).astype(np.float32)
    labels = np.random.default_rng(1).integers(0, 8, 300)
    rank = ranks(logits, labels)
    found = counts(logits, labels)
    assert found["top1"] == (rank == 0).sum()
    assert found["top5"] == (rank < 5).sum()


def test_padding_counts_for_nothing():
    """Not even where it holds no numbers, or the right answer."""
    logits, labels = draw(32, 7, seed=2)
    mask = np.arange(32) % 3 > 0
    logits[0] = np.nan
    logits[3] = np.inf
    logits[6] = 0
    logits[6, labels[6]] = 9
    found = counts(logits, labels, mask)
    rank = ranks(logits[mask], labels[mask])
    assert found["top1"] == (rank == 0).sum()
    assert found["top5"] == (rank < 5).sum()
    expected = -log_softmax(logits[mask])[np.arange(21), labels[mask]].sum()
    assert found["loss"] == pytest.approx(expected, rel=1e-5)
