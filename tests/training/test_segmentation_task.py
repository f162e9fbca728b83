"""Segmentation's loss, predictions and results against NumPy in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from sklearn import metrics

from vt_flax.errors import UserError
from vt_flax.training.config import resolve
from vt_flax.training.tasks.metrics import confusion_matrix, segmentation_scores
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


def test_a_loss_at_the_labels_size_is_pytorchs(torch):
    logits, labels = draw((2, 5, 7))[0], draw((2, 19, 26), 1)[1]
    wide = torch.nn.functional.interpolate(
        torch.tensor(logits).permute(0, 3, 1, 2), (19, 26), mode="bilinear"
    )
    expected = torch.nn.functional.cross_entropy(
        wide, torch.tensor(labels.astype(np.int64)), ignore_index=255
    )
    loss, _ = task().loss(jnp.asarray(logits), jnp.asarray(labels))
    assert loss == pytest.approx(expected.item(), rel=1e-5)


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


def test_scores_are_scikit_learns():
    rng = np.random.default_rng(0)
    # Of four classes one is nowhere, and one is told where it is not.
    labels, predicted = rng.integers(0, 2, 500), rng.integers(0, 3, 500)
    confusion = metrics.confusion_matrix(labels, predicted, labels=range(4))
    found = segmentation_scores(confusion, NAMES)
    each = metrics.jaccard_score(labels, predicted, average=None, labels=range(3))
    assert each[2] == 0
    np.testing.assert_allclose([found[f"iou/{n}"] for n in NAMES[:3]], 100 * each)
    assert found["iou/nowhere"] is None
    assert found["miou"] == pytest.approx(100 * each.mean())
    accuracy = metrics.accuracy_score(labels, predicted)
    assert found["pixel_accuracy"] == pytest.approx(100 * accuracy)
    # A class without labels has no recall.
    recall = metrics.recall_score(
        labels, predicted, average=None, labels=range(2), zero_division=0
    )
    assert found["mean_accuracy"] == pytest.approx(100 * recall.mean())
    share = np.bincount(labels, minlength=3) / 500
    assert found["fwiou"] == pytest.approx(100 * (share * each).sum())


# Predictions. The network pools 4 x 4 pixels, and maps their colours to logits.

WEIGHTS = np.random.default_rng(5).normal(size=(3, 4)).astype(np.float32)


def network(images):
    batch, height, width, _ = images.shape
    cells = images.reshape(batch, height // 4, 4, width // 4, 4, 3).mean((2, 4))
    return cells @ WEIGHTS


def scene(sizes, seed=0):
    """Smooth images of some sizes in a canvas of 40 x 48, and their labels."""
    rng = np.random.default_rng(seed)
    images = np.zeros((len(sizes), 40, 48, 3), np.uint8)
    labels = np.full((len(sizes), 40, 48), 255, np.uint8)
    for i, (height, width) in enumerate(sizes):
        coarse = rng.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3))
        fine = coarse.repeat(4, 0).repeat(4, 1)[:height, :width]
        images[i, :height, :width] = fine
        labels[i, :height, :width] = rng.choice([0, 1, 2, 255], (height, width))
    return images, labels, np.asarray(sizes, np.int32)


def linear(length, cells):
    """Weights (length, cells) of a bilinear up-sampling with half-pixel centres."""
    weights = np.zeros((length, cells))
    for i in range(length):
        at = min(max((i + 0.5) * cells / length - 0.5, 0), cells - 1)
        low = int(at)
        weights[i, low] += 1 - (at - low)
        weights[i, min(low + 1, cells - 1)] += at - low
    return weights


def expected_probabilities(images, sizes, config):
    """Of the network on the canvas, with the mean colour around an image."""
    mean, std = np.asarray(config.data.mean), np.asarray(config.data.std)
    normal = (images / 255 - mean) / std
    for i, (height, width) in enumerate(sizes):
        normal[i, height:] = 0
        normal[i, :, width:] = 0
    logits = np.einsum(
        "yn,xm,bnmc->byxc", linear(40, 10), linear(48, 12), network(normal)
    )
    return np.exp(log_softmax(logits))


SIZES = [(40, 48), (25, 31), (7, 48)]


def test_each_image_is_predicted_and_counted_at_its_own_size():
    it = task()
    images, labels, sizes = scene(SIZES)
    predicted, *_ = it.predict(network, jnp.asarray(images), jnp.asarray(sizes))
    predicted = np.asarray(predicted)
    probabilities = expected_probabilities(images, sizes, it.config)
    mask = np.asarray([True, True, False])
    batch = {"image": images, "label": labels, "size": sizes, "mask": mask}
    counts = it.counts(network, jax.tree.map(jnp.asarray, batch))
    confusion, losses = np.zeros((4, 4), int), []
    for i, (height, width) in enumerate(sizes):
        own = predicted[i, :height, :width]
        np.testing.assert_array_equal(own, probabilities[i, :height, :width].argmax(-1))
        beyond = np.ones((40, 48), bool)
        beyond[:height, :width] = False
        assert (predicted[i][beyond] == 255).all()
        if mask[i]:
            label = labels[i, :height, :width]
            known = label != 255
            np.add.at(confusion, (label[known], own[known]), 1)
            own = probabilities[i, :height, :width][known]
            losses += np.log(own[np.arange(len(own)), label[known]]).tolist()
    np.testing.assert_array_equal(counts["confusion"], confusion)
    totals = {k: np.asarray(v) for k, v in counts.items()} | {"examples": 2}
    results = it.results(totals)
    assert results["loss"] == pytest.approx(-np.mean(losses), rel=1e-5)
    assert results["miou"] == segmentation_scores(confusion, NAMES)["miou"]


def test_logits_of_a_prediction_are_logarithms_of_its_probabilities():
    images, _, sizes = scene(SIZES)
    images_, sizes_ = jnp.asarray(images), jnp.asarray(sizes)
    it = task()
    classes, *_, logits = it.predict(network, images_, sizes_, with_logits=True)
    np.testing.assert_array_equal(classes, it.predict(network, images_, sizes_)[0])
    expected = expected_probabilities(images, sizes, it.config)
    for i, (height, width) in enumerate(sizes):
        np.testing.assert_allclose(
            np.exp(logits[i, :height, :width]), expected[i, :height, :width], atol=1e-5
        )
    # Of probabilities that are averaged, those of the average.
    it = task(eval_scales=[1.0, 0.5], eval_flip=True)
    classes, *_, logits = it.predict(network, images_, sizes_, with_logits=True)
    np.testing.assert_allclose(np.exp(logits).sum(-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(classes, it.predict(network, images_, sizes_)[0])


def test_predictions_are_averaged_over_mirrored_images():
    """A network that looks at where a pixel is, and classes that change sides."""

    def sided(bias, images):
        left = jnp.linspace(1, 0, images.shape[2] // 4)
        shape = (len(images), images.shape[1] // 4, images.shape[2] // 4)
        logits = [left + bias, 1 - left, 0 * left, 0 * left]
        return jnp.stack([jnp.broadcast_to(x, shape) for x in logits], -1)

    images, _, sizes = scene([(40, 48)])

    def predict(it, bias=0.0):
        apply = functools.partial(sided, bias)
        return np.asarray(it.predict(apply, jnp.asarray(images), jnp.asarray(sizes))[0])

    once = predict(task())
    assert (once[0, :, :24] == 0).all() and (once[0, :, 24:] == 1).all()
    # Mirrored, left looks like right, and nothing remains but what both have more of.
    assert (predict(task(eval_flip=True), 0.1) == 0).all()
    # But classes that are exchanged in mirrored images stay where they are.
    exchanged = predict(task(eval_flip=True, mirrored=(1, 0, 2, 3)))
    np.testing.assert_array_equal(exchanged, once)


def test_predictions_are_averaged_over_scales():
    it = task(eval_scales=[1.0, 0.5])
    # Of one colour, an image is the same at every scale.
    images = np.full((1, 40, 48, 3), (200, 30, 90), np.uint8)
    sizes = np.asarray([[40, 48]], np.int32)
    seen = []

    def recorded(x):
        seen.append(x.shape[1:3])
        return network(x)

    found, *_ = it.predict(recorded, jnp.asarray(images), jnp.asarray(sizes))
    assert seen == [(40, 48), (20, 24)]
    expected = expected_probabilities(images, sizes, it.config).argmax(-1)
    np.testing.assert_array_equal(found, expected)


# Bad input.


def test_class_folders_have_no_masks():
    config = configured()
    config.data.name = "folder:somewhere"
    with pytest.raises(UserError, match="have no masks; make a dataset"):
        Segmentation.open_source(config, "train")
