"""Records of measured steps by hand, and quartiles by NumPy; no clock is used."""

import time

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from vt_flax.measure import step as measured_step
from vt_flax.measure.step import cost_rows, rate_rows, record, report
from vt_flax.parallel.mesh import make_mesh
from vt_flax.plan import machine
from vt_flax.plan.step import MeshStep
from vt_flax.training.config import resolve


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still; `clock.append(s)` puts it forward."""
    passed = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: sum(passed))
    return passed


def test_seconds_of_several_steps_are_their_mean(clock):
    durations = [8.0, 0.5, 1.0, 3.0, 7.0]
    times = iter(durations)

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


@pytest.mark.parametrize("rounds", [1, 2, 3, 10])
def test_a_record(rounds):
    """Medians, quartiles and the median of the ratios of each round, as by NumPy."""
    times, ours = np.random.default_rng(rounds).uniform(0.1, 0.9, (2, rounds))
    macs, peak = 10**9, 3e12
    row = record("loop", "net", 50, times.tolist(), ours.tolist(), macs, peak)
    low, middle, high = 1e3 * np.percentile(times, [25, 50, 75])
    assert row["ms"] == pytest.approx(middle, rel=1e-3)
    np.testing.assert_allclose(row["ms_quartiles"], [low, high], rtol=1e-3)
    assert row["images_per_second"] == pytest.approx(50e3 / middle, rel=1e-3)
    assert row["ours_ratio"] == pytest.approx(np.median(times / ours), abs=1e-3)
    # Two operations a multiply-add, of the forward pass and twice of the backward.
    share = 100 * 6 * macs * 50e3 / middle / peak
    assert row["mfu"] == pytest.approx(share, abs=0.01)
    assert record("loop", "net", 50, times, ours, macs, None)["mfu"] is None


def test_tables():
    made = record("ours", "net", 50, [0.1, 0.2, 0.4], [0.1, 0.2, 0.4], 10**9, None)
    costs = {"trace_s": 1.0, "compile_s": 12.3456, "cached_s": None}
    row, same = rate_rows([made | costs, made])
    assert row == same and row["ms"] == 200 and row["quartiles"] == "150.0 to 300.0"
    # Only what was compiled.
    (row,) = cost_rows([made | costs, made])
    assert row["compiling s"] == 12.35 and row["from the cache s"] is None


def test_a_batch_that_does_not_fit_is_left_out(monkeypatch):
    class Step:
        model, size, error = None, (8, 8), "RESOURCE_EXHAUSTED: 9 GB\nfor 8 GB"

        def __init__(self, config, mesh, batch):
            self.batch = batch

        def start(self):
            if self.batch > 8:
                raise jax.errors.JaxRuntimeError(self.error)

        def seconds(self, steps=1):
            return 0.25

    monkeypatch.setattr(measured_step, "Step", Step)
    counts = type("Counts", (), {"total_macs": 1})
    monkeypatch.setattr(measured_step, "count", lambda *_: counts)
    model = {"name": "resnet18", "num_classes": 10}
    config = resolve(ConfigDict({"model": model}))

    def measured():
        options = {"peak": "published", "loop": False, "compiling": False}
        return report({8: config, 16: config}, rounds=1, warmup=1, **options)

    (row,), notes = measured()
    assert row["batch"] == 8 and row["ms"] == 250
    assert "batch 16 does not fit into the device's memory" in notes
    # Anything else is no matter of its size.
    Step.error = "INTERNAL: bug"
    with pytest.raises(jax.errors.JaxRuntimeError, match="bug"):
        measured()


@pytest.mark.parametrize(
    "kind, dtype, expected",
    [
        ("TPU v5 lite", "bfloat16", 197e12),
        ("TPU v5 lite", "float32", 197e12),
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.4e12),
        ("NVIDIA H100 80GB HBM3", "float32", 494.7e12),
        # Of a JAX device, which is half a chip of 2,307 TFLOP/s.
        ("TPU7x", "bfloat16", 1153.5e12),
        ("TPU7x", "float32", 1153.5e12),
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
    monkeypatch.setattr(machine, "TRIES", 2)
    found = machine.measured_peak(make_mesh(), "float32")
    # The first of each is compiled.
    assert sides == [256] * 3 + [512] * 3
    assert found == pytest.approx(2 * 8 * 256**3 / 0.01)
