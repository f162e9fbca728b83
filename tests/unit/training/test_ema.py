"""Exponential moving averages against a loop in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from vt_flax.training.step import update_ema


@pytest.mark.parametrize(
    "decay, ramp", [(0.9, False), (0.9, True), (0.99985, True), (0.99985, False)]
)
def test_averages(decay, ramp):
    """With the ramp a tenth of the first value is kept at step 0, a half at step 8."""
    config = ConfigDict({"decay": decay, "ramp": ramp})
    update = jax.jit(lambda ema, new, step: update_ema(ema, new, step, config))
    values = np.random.default_rng(0).normal(size=(60, 3))
    ema = {"a": {"b": jnp.full(3, 5.0)}, "c": jnp.array(-2.0)}
    b, c = np.full(3, 5.0), -2.0
    for t, value in enumerate(values):
        new = {"a": {"b": jnp.asarray(value, jnp.float32)}, "c": jnp.array(7.0)}
        ema = update(ema, new, jnp.int32(t))
        d = min(decay, (1 + t) / (10 + t)) if ramp else decay
        b, c = d * b + (1 - d) * value, d * c + (1 - d) * 7.0
        # (1 - 0.99985) in float32 is off by 2e-4 of itself.
        np.testing.assert_allclose(ema["a"]["b"], b, atol=1e-4)
        np.testing.assert_allclose(ema["c"], c, atol=1e-4)
