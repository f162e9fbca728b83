"""Records of measured steps by hand and by NumPy; no clock is used."""

import time

import jax
import numpy as np
import pytest

from vt_flax.measure.step import record
from vt_flax.parallel.mesh import make_mesh
from vt_flax.plan import machine
from vt_flax.plan.step import MeshStep


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still; `clock.append(s)` puts it forward."""
    passed = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: sum(passed))
    return passed


def test_seconds_of_several_steps_are_their_mean(clock):
    times = iter([8.0, 0.5, 1.0, 3.0, 7.0])

    def step(state, batch, teacher):
        assert batch["image"].shape == (16, 2) and batch["request"].shape == (8,)
        assert teacher is None
        clock.append(next(times))
        return state + 1, {"loss": state}

    made = MeshStep(
        make_mesh(),
        16,
        None,
        (1, 2),
        step,
        lambda: jax.numpy.zeros(()),
        lambda n: {"image": np.ones((n, 2), np.float32), "request": np.zeros(8)},
    )
    made.start()
    assert made.seconds() == pytest.approx(0.5)
    assert made.seconds(3) == pytest.approx(np.mean([1.0, 3.0, 7.0]))
    assert made.state == 5


def test_a_record():
    """Medians, and the median of the ratios of each round."""
    times, ours = np.random.default_rng(0).uniform(0.1, 0.9, (2, 10))
    macs, peak = 10**9, 3e12
    row = record("loop", "net", 50, times.tolist(), ours.tolist(), macs, peak)
    middle = 1e3 * np.median(times)
    assert row["ms"] == pytest.approx(middle, rel=1e-3)
    assert row["least ms"] == pytest.approx(1e3 * times.min(), rel=1e-3)
    assert row["images/s"] == pytest.approx(50e3 / middle, rel=1e-3)
    assert row["ours over it"] == pytest.approx(np.median(times / ours), abs=1e-3)
    # Two operations a multiply-add, of the forward pass and twice of the backward.
    share = 100 * 6 * macs * 50e3 / middle / peak
    assert row["MFU %"] == pytest.approx(share, abs=0.01)
    assert record("loop", "net", 50, times, ours, macs, None)["MFU %"] is None


@pytest.mark.parametrize(
    "kind, dtype, expected",
    [
        ("TPU v5 lite", "float32", 197e12),
        ("NVIDIA H100 80GB HBM3", "float32", 494.7e12),
        # Of a JAX device, which is half a chip of 2,307 TFLOP/s.
        ("TPU7x", "bfloat16", 1153.5e12),
        ("cpu", "float32", None),
    ],
)
def test_published_peaks(kind, dtype, expected):
    assert machine.published_peak(kind, dtype) == expected


def test_measured_peak(clock, monkeypatch):
    """The largest product takes longest, but here a smaller one is faster."""
    sides = []

    def wait(value):
        side = value.shape[-1]
        sides.append(side)
        assert value.shape == (8, side, side)
        np.testing.assert_array_equal(np.asarray(value), side)
        clock.append({256: 0.01, 512: 0.08}[side])

    monkeypatch.setattr(jax, "block_until_ready", wait)
    monkeypatch.setattr(machine, "SECONDS", 0.0)
    monkeypatch.setattr(machine, "RUNS", 2)
    found = machine.measured_peak(make_mesh(), "float32")
    # The first of each is compiled.
    assert sides == [256] * 3 + [512] * 3
    assert found == pytest.approx(2 * 8 * 256**3 / 0.01)
