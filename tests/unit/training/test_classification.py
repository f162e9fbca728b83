"""The loss, ranks and counts of classification against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from vt_flax.training.tasks.classification import classification_loss
from vt_flax.training.tasks.metrics import classification_counts, label_rank


def draw(batch, classes, seed=0):
    rng = np.random.default_rng(seed)
    logits = (3 * rng.normal(size=(batch, classes))).astype(np.float32)
    return logits, rng.integers(0, classes, batch)


def log_softmax(logits):
    logits = logits.astype(np.float64)
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def ranks(logits, labels):
    """Places of the labels when classes are sorted, equals in their own order."""
    order = np.argsort(-logits.astype(np.float64), axis=-1, kind="stable")
    return np.argmax(order == labels[:, None], axis=-1)


def counts(logits, labels, mask=None):
    mask = np.ones(len(labels), bool) if mask is None else np.asarray(mask)
    found = jax.jit(classification_counts)(logits, labels, mask)
    return {key: value.item() for key, value in found.items()}


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_smoothed_cross_entropy(classes, smoothing):
    """The target is 1 - s for the label, and s / classes more for every class."""
    logits, labels = draw(16, classes)
    target = np.full((16, classes), smoothing / classes)
    target[np.arange(16), labels] += 1 - smoothing
    expected = -(target * log_softmax(logits)).sum(-1)
    config = ConfigDict({"label_smoothing": smoothing})
    out = classification_loss(logits, labels, config)
    assert out.shape == (16,) and out.dtype == np.float32
    np.testing.assert_allclose(out, expected, rtol=2e-5, atol=1e-5)


def test_cross_entropy_by_hand():
    """Equal logits of 4 classes: log 4, whatever the smoothing."""
    for smoothing in (0.0, 0.3):
        config = ConfigDict({"label_smoothing": smoothing})
        out = classification_loss(jnp.zeros((1, 4)), jnp.array([2]), config)
        assert out.item() == pytest.approx(np.log(4))


def test_large_logits_do_not_overflow():
    logits = jnp.array([[1e4, 0.0], [0.0, 1e4]])
    config = ConfigDict({"label_smoothing": 0.0})
    out = classification_loss(logits, jnp.array([0, 0]), config)
    np.testing.assert_allclose(out, [0.0, 1e4], rtol=1e-6)


@pytest.mark.parametrize("classes", [2, 3, 5, 6, 100])
def test_ranks(classes):
    logits, labels = draw(200, classes)
    np.testing.assert_array_equal(label_rank(logits, labels), ranks(logits, labels))


def test_ranks_of_equal_logits():
    """Few values, so that most logits have an equal."""
    rng = np.random.default_rng(0)
    logits = rng.integers(0, 3, (300, 8)).astype(np.float32)
    labels = rng.integers(0, 8, 300)
    found = np.asarray(label_rank(logits, labels))
    np.testing.assert_array_equal(found, ranks(logits, labels))
    np.testing.assert_array_equal(found == 0, logits.argmax(-1) == labels)
    # A network that gives every class the same is right by chance alone.
    same = label_rank(jnp.zeros((8, 8)), jnp.arange(8))
    np.testing.assert_array_equal(same, np.arange(8))


def test_ranks_of_infinite_logits():
    logits = jnp.array([[np.inf, 1.0, -np.inf]] * 3)
    np.testing.assert_array_equal(label_rank(logits, jnp.arange(3)), [0, 1, 2])


@pytest.mark.parametrize("classes", [2, 3, 5, 10])
@pytest.mark.parametrize("place", ["label", "other", "all"])
def test_nothing_counts_as_right_where_a_logit_is_no_number(classes, place):
    logits, labels = draw(6, classes)
    if place == "all":
        logits[:] = np.nan
    else:
        column = labels if place == "label" else (labels + 1) % classes
        logits[np.arange(6), column] = np.nan
    assert (np.asarray(label_rank(logits, labels)) == classes).all()
    found = counts(logits, labels)
    assert (found["top1"], found["top5"]) == (0, 0)


@pytest.mark.parametrize("classes", [3, 5, 6, 50])
def test_counts(classes):
    logits, labels = draw(64, classes, seed=1)
    place = ranks(logits, labels)
    found = counts(logits, labels)
    assert found["top1"] == (place == 0).sum()
    assert found["top5"] == (place < 5).sum()
    if classes <= 5:
        assert found["top5"] == 64
    expected = -log_softmax(logits)[np.arange(64), labels].sum()
    assert found["loss"] == pytest.approx(expected, rel=1e-5)


def test_masked_places_count_for_nothing():
    """Not even where they hold no numbers, or the right answer."""
    logits, labels = draw(32, 7, seed=2)
    mask = np.arange(32) % 3 > 0
    logits[0] = np.nan
    logits[3] = np.inf
    logits[6] = 0
    logits[6, labels[6]] = 9
    found = counts(logits, labels, mask)
    place = ranks(logits[mask], labels[mask])
    assert mask.sum() == 21
    assert found["top1"] == (place == 0).sum()
    assert found["top5"] == (place < 5).sum()
    expected = -log_softmax(logits[mask])[np.arange(21), labels[mask]].sum()
    assert found["loss"] == pytest.approx(expected, rel=1e-5)


def test_nothing_but_masked_places():
    logits, labels = draw(4, 7)
    found = counts(logits, labels, np.zeros(4, bool))
    assert found == {"top1": 0, "top5": 0, "loss": 0.0}
