"""Distillation: loss and gradient against NumPy in float64."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from vt_flax.data.augment import Targets
from vt_flax.parallel.mesh import make_mesh, state_sharding, to_global
from vt_flax.training.config import resolve
from vt_flax.training.state import create_state
from vt_flax.training.step import compile_train_step
from vt_flax.training.tasks.classification import Classification, distillation_loss

pytestmark = pytest.mark.slow

CLASSES = 7
SIDE = 16
WEIGHT, TEMPERATURE, SMOOTHING = 0.7, 2.0, 0.1


class Linear(nn.Module):
    """A network whose gradient takes one line."""

    classes: int = CLASSES

    @nn.compact
    def __call__(self, images, train=False):
        del train
        return nn.Dense(self.classes, use_bias=False)(images.reshape(len(images), -1))


def softmax(logits):
    logits = np.asarray(logits, np.float64)
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def divergence(student, teacher, temperature):
    """T^2 times the sum of p (log p - log q)."""
    p, q = (softmax(np.float64(x) / temperature) for x in (teacher, student))
    return temperature**2 * (p * (np.log(p) - np.log(q))).sum(-1)


def configured(grad_accum_steps=1):
    return resolve(
        ConfigDict(
            {
                "grad_accum_steps": grad_accum_steps,
                "distillation": {"weight": WEIGHT, "temperature": TEMPERATURE},
                "loss": {"label_smoothing": SMOOTHING},
                "data": {"flip": False, "image_size": SIDE},
                "ema": {"decay": 0.0},
            }
        )
    )


def draw(batch=6, seed=0):
    rng = np.random.default_rng(seed)
    logits, teacher_logits = (3 * rng.normal(size=(2, batch, CLASSES))).astype(
        np.float32
    )
    share = rng.uniform(0.1, 0.9, batch).astype(np.float32)
    labels = rng.integers(0, CLASSES, (batch, 2)).astype(np.int32)
    return logits, teacher_logits, Targets(labels, np.stack([share, 1 - share], 1))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_divergence_from_the_teacher(temperature):
    logits, teacher_logits, _ = draw()
    found = distillation_loss(
        jnp.asarray(logits), jnp.asarray(teacher_logits), temperature
    )
    expected = divergence(logits, teacher_logits, temperature)
    assert expected.min() > 1e-3
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    same = distillation_loss(
        jnp.asarray(teacher_logits), jnp.asarray(teacher_logits), temperature
    )
    np.testing.assert_allclose(same, 0, atol=1e-6)


def test_a_class_of_probability_0_in_the_teacher_costs_nothing():
    teacher_logits = jnp.asarray([[0.0, -1e30, 0.0]])
    logits = jnp.asarray([[0.0, 50.0, 0.0]])
    loss, gradient = jax.value_and_grad(
        lambda x: distillation_loss(x, teacher_logits, 1.0).sum()
    )(logits)
    assert loss == pytest.approx(50 - np.log(2), rel=1e-5)
    np.testing.assert_allclose(gradient, [[-0.5, 1.0, -0.5]], atol=1e-5)


def test_the_loss_of_mixed_and_smoothed_labels():
    task = Classification(configured(), [""] * CLASSES)
    logits, teacher_logits, targets = draw()
    loss, found = task.loss(jnp.asarray(logits), targets, jnp.asarray(teacher_logits))
    goal = np.full(logits.shape, SMOOTHING / CLASSES)
    for labels, weights in zip(targets.labels.T, targets.weights.T, strict=True):
        goal[np.arange(6), labels] += (1 - SMOOTHING) * weights
    labels_loss = -(goal * np.log(softmax(logits))).sum(-1)
    expected = WEIGHT * divergence(logits, teacher_logits, TEMPERATURE)
    expected += (1 - WEIGHT) * labels_loss
    assert loss == pytest.approx(expected.mean(), rel=1e-5)

    def top1(logits):
        first = logits.argmax(-1)[:, None] == targets.labels
        return (first * targets.weights).sum(-1).mean()

    assert found["top1"] == pytest.approx(top1(logits), rel=1e-6)
    assert found["teacher_top1"] == pytest.approx(top1(teacher_logits), rel=1e-6)
    same = (logits.argmax(-1) == teacher_logits.argmax(-1)).mean()
    assert found["teacher_agreement"] == pytest.approx(same, rel=1e-6)
    # Without a teacher, the loss of the labels alone.
    loss, found = task.loss(jnp.asarray(logits), targets)
    assert loss == pytest.approx(labels_loss.mean(), rel=1e-5)
    assert list(found) == ["top1"]


@pytest.mark.parametrize("devices, fsdp, microbatches", [(8, 1, 1), (4, 4, 4)])
def test_a_step_follows_the_gradient(devices, fsdp, microbatches):
    """The old parameters less the new are the gradients: SGD of learning rate 1."""
    batch = 16
    config = configured(microbatches)
    task = Classification(config, [""] * CLASSES)
    mesh = make_mesh(jax.devices()[:devices], fsdp)
    optimizer = optax.sgd(1.0)
    # Large enough to be sharded by fsdp.
    weights = np.random.default_rng(1).normal(size=(3 * SIDE**2, 32))
    weights = {"w": (0.05 * weights).astype(np.float32)}

    def teacher(variables, images):
        flat = images.reshape(len(images), -1)
        return (flat @ variables["w"])[:, :CLASSES]

    state = create_state(Linear(), optimizer, (SIDE, SIDE), 0, ema=False)
    state = jax.device_put(state, state_sharding(mesh, state))
    old = np.float64(state.params["Dense_0"]["kernel"])
    variables = jax.device_put(weights, state_sharding(mesh, weights))
    assert variables["w"].is_fully_replicated == (fsdp == 1)
    rng = np.random.default_rng(2)
    rows = {
        "image": rng.integers(0, 256, (batch, SIDE, SIDE, 3), np.uint8),
        "label": rng.integers(0, CLASSES, batch).astype(np.int32),
        "bad": np.zeros(batch, bool),
        "request": np.zeros(devices, np.int32),
    }
    step = compile_train_step(
        Linear(), task, optimizer, lambda step: 1.0, config, mesh, state, teacher
    )
    after, metrics = step(state, to_global(rows, mesh), variables)

    mean, std = (np.float64(config.data[key]) for key in ("mean", "std"))
    x = ((rows["image"] / 255 - mean) / std).reshape(batch, -1)
    student_logits = x @ old
    teacher_logits = x @ np.float64(weights["w"][:, :CLASSES])
    goal = np.full((batch, CLASSES), SMOOTHING / CLASSES)
    goal[np.arange(batch), rows["label"]] += 1 - SMOOTHING
    loss = WEIGHT * divergence(student_logits, teacher_logits, TEMPERATURE)
    loss += (1 - WEIGHT) * -(goal * np.log(softmax(student_logits))).sum(-1)
    slope = softmax(student_logits / TEMPERATURE) - softmax(
        teacher_logits / TEMPERATURE
    )
    slope = WEIGHT * TEMPERATURE * slope
    slope += (1 - WEIGHT) * (softmax(student_logits) - goal)
    assert metrics["loss"] == pytest.approx(loss.mean(), rel=1e-4)
    right = (teacher_logits.argmax(-1) == rows["label"]).mean()
    assert metrics["teacher_top1"] == pytest.approx(right)
    gradient = old - np.float64(after.params["Dense_0"]["kernel"])
    np.testing.assert_allclose(gradient, x.T @ slope / batch, rtol=1e-3, atol=1e-5)
    # Neither donated nor changed.
    np.testing.assert_array_equal(variables["w"], weights["w"])
