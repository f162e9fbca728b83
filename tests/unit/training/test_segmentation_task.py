"""Segmentation: loss, counts, scores, and predictions over scales beside Pillow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vt_flax.errors import UserError
from vt_flax.training.config import default_config
from vt_flax.training.tasks.metrics import confusion_matrix, segmentation_scores
from vt_flax.training.tasks.segmentation import Segmentation

pytestmark = pytest.mark.slow

CLASSES = 4
NAMES = ("sky", "road", "left arm", "right arm")
# Neither sides of it nor of the examples are multiples of 4 or ROWS.
CANVAS = (37, 45)
SIZES = [(37, 45), (21, 30), (33, 9), (1, 1)]
WEIGHTS = np.random.default_rng(5).normal(size=(3, CLASSES)).astype(np.float32)


def make_task(mirrored=(), smoothing=0.0, **changes):
    config = default_config()
    config.loss.label_smoothing = smoothing
    config.data.update({"mean": [0.4, 0.5, 0.3], "std": [0.2, 0.25, 0.3]})
    config.segmentation.update({"canvas": list(CANVAS), **changes})
    return Segmentation(config, NAMES, mirrored)


def draw_labels(generator, shape):
    labels = generator.integers(0, CLASSES, shape)
    return np.where(generator.random(shape) < 0.25, 255, labels).astype(np.uint8)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_and_accuracy_of_labeled_pixels(smoothing):
    generator = np.random.default_rng(0)
    logits = 3 * generator.normal(size=(2, 5, 7, CLASSES))
    labels = draw_labels(generator, (2, 5, 7))
    logs, known = logits - np.log(np.exp(logits).sum(-1, keepdims=True)), labels != 255
    own = np.take_along_axis(logs, np.where(known, labels, 0)[..., None], -1)[..., 0]
    expected = (-(1 - smoothing) * own - smoothing * logs.mean(-1))[known].mean()
    task = make_task(smoothing=smoothing)
    loss, metrics = task.loss(jnp.asarray(logits, jnp.float32), jnp.asarray(labels))
    assert loss == pytest.approx(expected, rel=1e-5)
    right = (logits.argmax(-1) == labels)[known].mean()
    assert metrics["pixel_accuracy"] == pytest.approx(right, rel=1e-6)


def test_loss_and_gradient_of_coarse_logits_are_pytorchs(torch):
    smoothing = 0.1
    functional = torch.nn.functional
    generator = np.random.default_rng(1)
    logits = (2 * generator.normal(size=(2, 9, 11, CLASSES))).astype(np.float32)
    labels = draw_labels(generator, (2, 33, 41))
    task = make_task(smoothing=smoothing)
    run = jax.jit(jax.value_and_grad(lambda x: task.loss(x, labels)[0]))
    loss, gradient = run(jnp.asarray(logits))
    given = torch.from_numpy(logits.astype(np.float64)).requires_grad_()
    large = functional.interpolate(
        given.permute(0, 3, 1, 2), (33, 41), mode="bilinear", align_corners=False
    )
    expected = functional.cross_entropy(
        large,
        torch.from_numpy(labels.astype(np.int64)),
        ignore_index=255,
        label_smoothing=smoothing,
    )
    expected.backward()
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, given.grad.numpy(), rtol=1e-3, atol=1e-6)


def test_counts_are_exact_and_of_classes_alone():
    """More of one pair than 16-bit floats count to, and no multiple of ROWS."""
    labels = np.zeros((1, 90, 801), np.uint8)
    found = confusion_matrix(labels, labels, 2)
    np.testing.assert_array_equal(found, [[[90 * 801, 0], [0, 0]]])
    labels = np.asarray([[[0, 1, 200, 255, 0]]], np.uint8)
    predicted = np.asarray([[[0, 0, 1, 1, 255]]], np.uint8)
    np.testing.assert_array_equal(
        confusion_matrix(labels, predicted, 2), [[[1, 0], [1, 0]]]
    )


def test_scores_by_hand():
    # Class 2 is predicted and never labeled; class 3 is nowhere.
    confusion = np.asarray([[6, 1, 1, 0], [2, 4, 2, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    found = segmentation_scores(confusion, NAMES)
    shares = {
        "miou": (6 / 10 + 4 / 9 + 0) / 3,
        "miou_labeled": (6 / 10 + 4 / 9) / 2,
        "fwiou": 8 / 16 * 6 / 10 + 8 / 16 * 4 / 9,
        "pixel_accuracy": 10 / 16,
        "mean_accuracy": (6 / 8 + 4 / 8) / 2,
        "iou/sky": 6 / 10,
        "iou/road": 4 / 9,
        "iou/left arm": 0.0,
    }
    assert found.pop("iou/right arm") is None
    assert found.pop("labeled_classes") == 2
    assert found == pytest.approx({k: 100 * v for k, v in shares.items()}, rel=1e-12)


def network(images, xp=jnp):
    """A network at stride 4: mean colours times a matrix, and where they are."""
    height, width = images.shape[1:3]
    x = xp.pad(images, ((0, 0), (0, -height % 4), (0, -width % 4), (0, 0)))
    x = x.reshape(len(x), x.shape[1] // 4, 4, x.shape[2] // 4, 4, 3).mean((2, 4))
    across = xp.arange(x.shape[2])[:, None] * xp.asarray([0.2, 0, 0.1, -0.1])
    return 2 * x @ WEIGHTS + across


def brought_back(values, own, valid, extent, axis):
    """Values of cells at an example's pixels, linear between the cells' centres."""
    cells = values.shape[axis]
    at = (np.arange(own) + 0.5) * (valid / own) * (cells / extent) - 0.5
    return np.apply_along_axis(
        lambda line: np.interp(at, np.arange(cells), line), axis, values
    )


def alone(task, image, scale, flip):
    """Probabilities (h, w, classes), float64, of one image at one scale."""
    mean, std = (np.asarray(task.config.data[key]) for key in ("mean", "std"))
    h, w = image.shape[:2]
    a, b = (max(1, round(side * scale)) for side in (h, w))
    planes = [
        np.asarray(Image.fromarray(p).resize((b, a), Image.Resampling.BILINEAR))
        for p in np.moveaxis(image.astype(np.float32), -1, 0)
    ]
    small = (np.stack(planes, -1) / 255 - mean) / std
    height, width = (int(np.ceil(side * scale)) for side in CANVAS)
    canvas = np.zeros((1, height, width, 3))
    canvas[0, :a, :b] = small[:, ::-1] if flip else small
    maps = network(canvas, np)[0]
    maps = brought_back(brought_back(maps, h, a, height, 0), w, b, width, 1)
    if flip:
        maps = maps[:, ::-1]
        if task.mirrored:
            maps = maps[..., list(task.mirrored)]
    powers = np.exp(maps - maps.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


@pytest.mark.parametrize(
    "scales, flip, mirrored",
    [
        ([1.0], False, ()),
        ([0.5, 1.0], True, (0, 1, 3, 2)),
    ],
)
def test_predictions_and_their_counts(scales, flip, mirrored):
    task = make_task(mirrored, eval_scales=scales, eval_flip=flip)
    generator = np.random.default_rng(0)
    images = np.full((len(SIZES), *CANVAS, 3), 77, np.uint8)
    labels = np.full((len(SIZES), *CANVAS), 255, np.uint8)
    for image, label, (h, w) in zip(images, labels, SIZES, strict=True):
        small = generator.integers(0, 256, (h // 4 + 1, w // 4 + 1, 3), np.uint8)
        image[:h, :w] = small.repeat(4, 0).repeat(4, 1)[:h, :w]
        label[:h, :w] = draw_labels(generator, (h, w))
    mask = np.asarray([True, True, False, True])
    sizes = np.asarray(SIZES, np.int32)
    batch = {"image": images, "label": labels, "size": sizes, "mask": mask}

    @jax.jit
    def run(batch):
        predicted = task.predict(
            network, batch["image"], batch["size"], with_logits=True
        )
        return task.counts(network, batch), *predicted

    counts, predicted, likely, logits = jax.device_get(run(batch))
    expected_losses, all_sure = [], []
    for k, (h, w) in enumerate(SIZES):
        views = [
            alone(task, images[k, :h, :w], scale, flipped)
            for scale in scales
            for flipped in ((False, True) if flip else (False,))
        ]
        mean = np.mean(views, 0)
        first, second = np.sort(mean, -1)[..., :-3:-1].transpose(2, 0, 1)
        sure = first - second > 1e-4
        all_sure.append(sure.ravel())
        found = predicted[k, :h, :w]
        np.testing.assert_array_equal(found[sure], mean.argmax(-1)[sure])
        assert (predicted[k, h:] == 255).all() and (predicted[k, :, w:] == 255).all()
        np.testing.assert_allclose(likely[k, :h, :w], first, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(np.exp(logits[k, :h, :w]), mean, atol=1e-4)
        assert not likely[k, h:].any() and not likely[k, :, w:].any()
        label = labels[k, :h, :w]
        own = np.take_along_axis(mean, np.minimum(label, 3)[..., None], -1)[..., 0]
        expected_losses.append(-np.log(own)[label != 255].sum())
    assert np.concatenate(all_sure).mean() > 0.95
    assert len(np.unique(predicted)) > 3
    expected = np.sum(expected_losses, where=mask)
    np.testing.assert_allclose(counts["loss"], expected, rtol=1e-4, atol=1e-4)

    known = (labels != 255) & mask[:, None, None]
    truth, found = labels[known], predicted[known]
    confusion = np.zeros((CLASSES, CLASSES), np.int64)
    np.add.at(confusion, (truth, found), 1)
    np.testing.assert_array_equal(counts["confusion"], confusion)
    ious = [
        ((truth == c) & (found == c)).sum() / ((truth == c) | (found == c)).sum()
        for c in range(CLASSES)
    ]
    results = task.results(counts)
    assert results["miou"] == pytest.approx(100 * np.mean(ious), abs=1e-9)
    assert results["loss"] == pytest.approx(counts["loss"] / len(truth), rel=1e-6)


@pytest.mark.parametrize(
    "confusion, labeled, summary",
    [
        # Row sums 4, 4, 0, 0: two classes labeled, a third predicted.
        (
            [[3, 1, 0, 0], [0, 2, 2, 0], [0] * 4, [0] * 4],
            [0, 1],
            "mIoU 38.33 % (2 of 4 classes labeled) pixel accuracy 62.50 % loss 0.5000",
        ),
        # 100 % of the only class that has pixels is no result.
        (
            [[8, 0, 0, 0], [0] * 4, [0] * 4, [0] * 4],
            [0],
            "mIoU - (1 of 4 classes labeled) pixel accuracy 100.00 % loss 0.5000",
        ),
    ],
)
def test_classes_without_a_pixel_in_a_split(confusion, labeled, summary):
    confusion, task = np.asarray(confusion), make_task()
    results = task.results({"confusion": confusion, "loss": np.asarray(4.0)})
    assert results["labeled_classes"] == len(labeled)
    ious = [
        confusion[c, c] / (confusion[c].sum() + confusion[:, c].sum() - confusion[c, c])
        for c in labeled
    ]
    wanted = 100 * np.mean(ious) if len(labeled) > 1 else None
    assert results["miou_labeled"] == pytest.approx(wanted)
    for name in ("miou", "fwiou", "mean_accuracy"):
        assert (results[name] is None) == (len(labeled) < 2)
    assert task.summary(results) == summary


def test_a_split_and_a_batch_without_labels():
    task = make_task()
    totals = {"confusion": np.zeros((CLASSES, CLASSES), int), "loss": np.zeros(())}
    with pytest.raises(UserError, match="no pixel of the evaluation split is labeled"):
        task.results(totals)
    logits = jnp.ones((1, 4, 4, CLASSES))
    labels = jnp.full((1, 4, 4), 255, jnp.uint8)
    loss, gradient = jax.value_and_grad(lambda x: task.loss(x, labels)[0])(logits)
    assert loss == 0 and not gradient.any()


def test_class_folders_have_no_masks():
    task = make_task()
    task.config.data.name = "folder:somewhere"
    with pytest.raises(UserError, match="have no masks; make a dataset"):
        Segmentation.open_source(task.config, "train")
