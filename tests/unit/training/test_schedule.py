"""Durations, and learning rates against closed forms in exact arithmetic."""

import fractions
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vt_flax.training.config import default_config
from vt_flax.training.durations import duration_steps
from vt_flax.training.schedule import make_schedule

Fraction = fractions.Fraction
IMAGENET = 1281167


def rates(steps, *, examples=1000, batch=100, total=1000, **changes):
    config = default_config().schedule
    config.update(changes)
    schedule = make_schedule(config, examples=examples, batch=batch, total=total)
    # Compiled and on int32 steps, as the training step calls it.
    return np.asarray(jax.jit(jax.vmap(schedule))(jnp.asarray(steps, jnp.int32)))


# Durations.


@pytest.mark.parametrize(
    "text,steps",
    [
        ("1000 steps", 1000),
        ("0 steps", 0),
        ("2.5 epochs", 25),
        ("  3 epochs ", 30),
        ("5 %", 10),
        ("12.5%", 25),
    ],
)
def test_durations(text, steps):
    assert duration_steps(text, examples=1000, batch=100, total=200) == steps


def test_an_epoch_need_not_be_whole_steps():
    # 1281167 / 2048 = 625.57: rounded once, not at every epoch.
    steps = duration_steps("400 epochs", examples=IMAGENET, batch=2048)
    assert steps == round(Fraction(400 * IMAGENET, 2048)) == 250228


# The paper's schedule.


def exponential(step, steps_per_epoch, warmup):
    """0.01 to 0.16 in the warm-up, then 0.16 x 0.9875 for each epoch after it."""
    if step < warmup:
        return 0.01 + 0.15 * step / warmup
    return 0.16 * 0.9875 ** math.floor((step - warmup) / steps_per_epoch)


@pytest.mark.parametrize("examples,batch", [(1000, 100), (IMAGENET, 2048)])
def test_exponential_staircase(examples, batch):
    """Every step near an epoch's border, over 400 epochs."""
    steps_per_epoch = Fraction(examples, batch)
    warmup = round(5 * steps_per_epoch)
    borders = [math.ceil(warmup + n * steps_per_epoch) for n in range(395)]
    steps = sorted({max(0, b + i) for b in borders for i in (-2, -1, 0, 1)})
    found = rates(
        steps, examples=examples, batch=batch, total=round(400 * steps_per_epoch)
    )
    expected = [exponential(step, steps_per_epoch, warmup) for step in steps]
    np.testing.assert_allclose(found, expected, rtol=2e-5)


def test_decays_may_be_counted_in_percent():
    steps = [9999, 10000, 19999, 20000]
    changes = {"warmup": "0 steps", "decay_every": "10 %", "decay_factor": 0.5}
    found = rates(steps, total=100000, **changes)
    np.testing.assert_allclose(found, [0.16, 0.08, 0.08, 0.04], rtol=1e-5)


def test_exponential_without_staircase():
    examples, batch = 50000, 128
    steps_per_epoch = examples / batch
    warmup = round(5 * steps_per_epoch)
    steps = np.arange(warmup, warmup + 1000)
    found = rates(steps, examples=examples, batch=batch, staircase=False)
    expected = 0.16 * 0.9875 ** ((steps - warmup) / steps_per_epoch)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert (np.diff(found) < 0).all()


def test_warmup_is_linear():
    found = rates(np.arange(52))
    np.testing.assert_allclose(found[:51], 0.01 + 0.15 * np.arange(51) / 50, rtol=1e-5)
    assert found[0] == pytest.approx(0.01) and found[50] == pytest.approx(0.16)


# The other schedules.


@pytest.mark.parametrize("warmup", [0, 5])
def test_step(warmup):
    """Boundaries count from the start of the run, not from the end of the warm-up."""
    steps = np.arange(warmup, 100)
    found = rates(
        steps,
        name="step",
        learning_rate=0.1,
        warmup=f"{warmup} steps",
        decay_factor=0.1,
        boundaries=["3 epochs", "60 steps", "8 %"],
    )
    # 8 % of 1000 steps are 80.
    decays = (steps >= 30).astype(int) + (steps >= 60) + (steps >= 80)
    np.testing.assert_allclose(found, 0.1 * 0.1**decays, rtol=1e-5)


@pytest.mark.parametrize("warmup", [0, 40])
def test_cosine(warmup):
    steps = np.arange(warmup, 1001)
    found = rates(steps, name="cosine", warmup=f"{warmup} steps")
    share = (steps - warmup) / (1000 - warmup)
    np.testing.assert_allclose(
        found, 0.16 * 0.5 * (1 + np.cos(np.pi * share)), rtol=1e-4, atol=1e-7
    )
    assert found[0] == pytest.approx(0.16) and found[-1] == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("warmup, power", [(0, 2.0), (40, 0.9)])
def test_poly(warmup, power):
    steps = np.arange(warmup, 1001)
    found = rates(steps, name="poly", power=power, warmup=f"{warmup} steps")
    left = 1 - (steps - warmup) / (1000 - warmup)
    np.testing.assert_allclose(found, 0.16 * left**power, rtol=1e-4, atol=1e-6)


def test_constant():
    steps = [0, 10, 20, 21, 999]
    found = rates(
        steps,
        name="constant",
        learning_rate=0.3,
        warmup="2 %",
        warmup_learning_rate=0.1,
    )
    np.testing.assert_allclose(found, [0.1, 0.2, 0.3, 0.3, 0.3], rtol=1e-5)
