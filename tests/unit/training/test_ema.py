"""Exponential moving averages against a loop in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from vt_flax.training.step import update_ema

VALUES = np.random.default_rng(0).normal(size=(300, 3))


def averages(decay, ramp, steps, first=0):
    """Returns the average after each update with `VALUES`, from a start of 5."""
    config = ConfigDict({"decay": decay, "ramp": ramp})
    update = jax.jit(lambda average, new, step: update_ema(average, new, step, config))
    average = {"a": {"b": jnp.full(3, 5.0)}, "c": jnp.array(-2.0)}
    found = []
    for t in range(first, first + steps):
        new = {"a": {"b": jnp.asarray(VALUES[t], jnp.float32)}, "c": jnp.array(7.0)}
        average = update(average, new, jnp.int32(t))
        found.append((np.asarray(average["a"]["b"]), float(average["c"])))
    return found


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.99985])
@pytest.mark.parametrize("ramp", [False, True])
def test_averages(decay, ramp):
    b, c = np.full(3, 5.0), -2.0
    for t, (found_b, found_c) in enumerate(averages(decay, ramp, 300)):
        d = min(decay, (1 + t) / (10 + t)) if ramp else decay
        b, c = d * b + (1 - d) * VALUES[t], d * c + (1 - d) * 7.0
        # (1 - 0.99985) in float32 is off by 2e-4 of itself.
        np.testing.assert_allclose(found_b, b, atol=1e-4)
        assert found_c == pytest.approx(c, abs=1e-4)


def test_ramp_by_hand():
    """At step 0 a tenth of the old value is kept, at step 8 a half."""
    (first, _), *_ = averages(0.99, True, 1)
    np.testing.assert_allclose(first, 0.5 + 0.9 * VALUES[0], rtol=1e-5)
    (ninth, _), *_ = averages(0.99, True, 1, first=8)
    np.testing.assert_allclose(ninth, 2.5 + 0.5 * VALUES[8], rtol=1e-5)


def test_a_short_run_forgets_its_start_with_the_ramp_alone():
    assert averages(0.99985, True, 50)[-1][1] == pytest.approx(7, abs=1e-3)
    assert averages(0.99985, False, 50)[-1][1] < -1.9
