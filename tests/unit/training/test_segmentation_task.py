"""Segmentation's loss and confusion matrix against NumPy and scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from sklearn import metrics

from vt_flax.errors import UserError
from vt_flax.training.config import resolve
from vt_flax.training.tasks.metrics import confusion_matrix
from vt_flax.training.tasks.segmentation import Segmentation, cross_entropy

pytestmark = pytest.mark.slow

NAMES = ("sky", "road", "tree", "nowhere")


def configured(**changes) -> ConfigDict:
    values = {
        "model": {"name": "fpn_resnet18", "stem": "small"},
        "segmentation": {"canvas": [40, 48], "crop": [32, 32], **changes},
        "loss": {"label_smoothing": 0.0},
    }
    return resolve(ConfigDict(values))


def task(mirrored=(), **changes) -> Segmentation:
    return Segmentation(configured(**changes), NAMES, mirrored)


def draw(shape, seed=0):
    """Logits, and labels of three classes and none."""
    rng = np.random.default_rng(seed)
    logits = 3 * rng.normal(size=(*shape, 4)).astype(np.float32)
    return logits, rng.choice([0, 1, 2, 255], shape).astype(np.uint8)


def log_softmax(logits):
    logits = logits.astype(np.float64)
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


# Loss.


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_of_labeled_pixels(smoothing):
    logits, labels = draw((2, 5, 7))
    logs, known = log_softmax(logits), labels != 255
    own = np.take_along_axis(logs, np.where(known, labels, 0)[..., None], -1)[..., 0]
    expected = -(1 - smoothing) * own - smoothing * logs.mean(-1)
    found = np.asarray(cross_entropy(jnp.asarray(logits), labels, smoothing))
    np.testing.assert_allclose(found[known], expected[known], rtol=1e-5)

    it = task()
    it.config.loss.label_smoothing = smoothing
    loss, told = it.loss(jnp.asarray(logits), jnp.asarray(labels))
    assert loss == pytest.approx(expected[known].mean(), rel=1e-5)
    right = (logits.argmax(-1) == labels)[known].mean()
    assert told["pixel_accuracy"] == pytest.approx(right, rel=1e-6)


def test_without_a_labeled_pixel_the_loss_is_0():
    logits = jnp.asarray(draw((1, 4, 4))[0])
    labels = jnp.full((1, 4, 4), 255, jnp.uint8)
    loss, gradient = jax.value_and_grad(lambda x: task().loss(x, labels)[0])(logits)
    assert loss == 0 and not gradient.any()


# Results.


@pytest.mark.parametrize("height", [3, 32, 45])
def test_pairs_are_counted(height):
    labels = draw((2, height, 9))[1]
    predicted = np.random.default_rng(1).integers(0, 3, labels.shape).astype(np.uint8)
    found = np.asarray(confusion_matrix(jnp.asarray(labels), jnp.asarray(predicted), 4))
    for i in range(2):
        known = labels[i] != 255
        expected = metrics.confusion_matrix(
            labels[i][known], predicted[i][known], labels=range(4)
        )
        np.testing.assert_array_equal(found[i], expected)


# Bad input.


def test_class_folders_have_no_masks():
    config = configured()
    config.data.name = "folder:somewhere"
    with pytest.raises(UserError, match="have no masks; make a dataset"):
        Segmentation.open_source(config, "train")
