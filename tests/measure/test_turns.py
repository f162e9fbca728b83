"""Statistics of measured steps against NumPy's, and rates by hand; no clock is used."""

import itertools
import time

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from vt_flax.errors import UserError
from vt_flax.measure import step_rate
from vt_flax.measure.step_rate import Rate, measure
from vt_flax.measure.step_tables import cost_rows, rate_rows, record
from vt_flax.measure.turns import Spread, ratios, spread, take_turns
from vt_flax.parallel.mesh import make_mesh
from vt_flax.plan import peaks
from vt_flax.plan.step import MeshStep
from vt_flax.training.config import resolve

TINY = {"stage_sizes": [1, 1, 1, 1], "width": 8, "num_classes": 10}


def config_of(name: str, **model) -> ConfigDict:
    return resolve(ConfigDict({"model": {"name": name, **TINY, **model}}))


@pytest.mark.parametrize("count", [1, 2, 3, 7, 10])
def test_spread_is_numpys(count):
    values = np.random.default_rng(count).lognormal(size=count).tolist()
    found = spread(values)
    expected = np.percentile(values, [25, 50, 75])
    np.testing.assert_allclose([found.low, found.median, found.high], expected)
    assert found.quartiles == (found.low, found.high)


def test_ratios_are_of_a_round():
    times, others = np.random.default_rng(0).uniform(1, 9, (2, 9))
    found = ratios(times.tolist(), others.tolist())
    assert found.median == pytest.approx(np.median(others / times))
    assert found.low == pytest.approx(np.percentile(others / times, 25))
    assert abs(found.median - np.median(others) / np.median(times)) > 0.01


def test_turns_are_taken_round_by_round():
    told = []

    def timer(name):
        seconds = itertools.count(1)
        return lambda: (told.append(name), float(next(seconds)))[1]

    times = take_turns([timer("a"), timer("b")], 3)
    assert told == ["a", "b"] * 3
    assert times == [[1.0, 2.0, 3.0]] * 2


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
        jax.ShapeDtypeStruct((), np.float32),
        lambda n: {"image": np.ones((n, 2), np.float32), "request": np.zeros(8)},
    )
    made.start()
    assert made.seconds() == pytest.approx(0.5)
    assert made.seconds(3) == pytest.approx(np.mean([1.0, 3.0, 7.0]))
    assert made.state == 5


class Scripted:
    """A step whose times are made up: of the first, of warming up, of each round."""

    times: dict[str, list[float]]
    asked: dict[str, list[int]]
    fails: dict[str, Exception]
    name = ""

    def __init__(self, config, mesh, batch):
        self._left = iter(self.times[self.name])
        self.asked[self.name] = []

    def start(self):
        if self.name in self.fails:
            raise self.fails[self.name]

    def seconds(self, steps=1):
        self.asked[self.name].append(steps)
        return next(self._left)


@pytest.fixture
def scripted(monkeypatch):
    def use(times, fails=None):
        Scripted.times, Scripted.asked, Scripted.fails = times, {}, fails or {}
        steps = {name: type(name, (Scripted,), {"name": name}) for name in times}
        monkeypatch.setattr(step_rate, "STEPS", steps)
        return Scripted.asked

    return use


def measured(**options):
    return measure(
        config_of("vt_resnet18", token_channels=64, group_channels=8),
        make_mesh(),
        64,
        **{"rounds": 4, "warmup": 2, "references": ["flax_resnet"], **options},
    )


def test_what_is_measured(scripted):
    ours, its = [0.03, 0.02, 0.05, 0.04], [0.06, 0.06, 0.2, 0.06]
    asked = scripted({"ours": [9.0, 0.11, *ours], "flax_resnet": [9.0, 0.6, *its]})
    (one, other), notes = measured()
    # Turns are half a second by the last step of warming up.
    assert asked == {"ours": [1, 1, 5, 5, 5, 5], "flax_resnet": [1, 1, 1, 1, 1, 1]}
    assert not notes
    assert (one.step, other.step, one.batch) == ("ours", "flax_resnet", 64)
    assert one.ratio == Spread(1, 1, 1)
    assert one.seconds.median == pytest.approx(np.median(ours))
    assert other.seconds.low == pytest.approx(np.percentile(its, 25))
    assert other.ratio.median == pytest.approx(np.median(np.divide(its, ours)))
    assert one.macs != other.macs and other.what.startswith("ResNet-18, Flax")


def test_what_does_not_fit_is_left_out(scripted):
    times = {"ours": [0.1] * 6, "flax_resnet": [0.1] * 6}
    full = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 GB\nfor 8 GB")
    scripted(times, {"flax_resnet": full})
    rates, notes = measured()
    assert [rate.step for rate in rates] == ["ours"]
    assert len(notes) == 1 and "flax_resnet at batch 64" in notes[0]
    assert "memory" in notes[0]
    scripted(times, {"ours": full})
    assert measured()[0] == []
    # Anything else is no matter of its size.
    for error in (UserError("no"), jax.errors.JaxRuntimeError("INTERNAL: bug")):
        scripted(times, {"ours": error})
        with pytest.raises(type(error)):
            measured()


def test_utilisation():
    # ResNet-50 at 2,500 images/s on one v5e: 61.3 of 197 TFLOP/s.
    share = peaks.utilisation(4_089_184_256, 2500.0, 197e12)
    assert share == pytest.approx(6 * 4.089184256e9 * 2500 / 197e12)
    assert share == pytest.approx(0.3114, abs=1e-4)


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
    assert peaks.published_peak(kind, dtype) == expected


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
    monkeypatch.setattr(peaks, "TRIES", 2)
    found = peaks.measured_peak(make_mesh(), "float32")
    # The first of each is compiled.
    assert sides == [256] * 3 + [512] * 3
    assert found == pytest.approx(2 * 8 * 256**3 / 0.01)


def test_record():
    rate = Rate("ours", "net", 50, Spread(0.1, 0.2, 0.4), Spread(1, 1.25, 2), 10**9)
    costs = {"trace_s": 1.0, "compile_s": 12.3456, "cached_s": None}
    made = record(rate, costs, 3e12)
    assert made["ms"] == 200 and made["ms_quartiles"] == [100, 400]
    assert made["images_per_second"] == 250
    assert made["ours_ratio"] == 1.25 and made["ours_ratio_quartiles"] == [1, 2]
    assert made["mfu"] == 50  # percent: 6 GFLOP an image, 250 a second
    assert made["compile_s"] == 12.35 and made["cached_s"] is None
    assert made["peak_mb"] is None
    other = record(Rate(*vars(rate).values()), {}, None)
    assert other["mfu"] is None

    (row, same) = rate_rows([made, other])
    assert row["ms"] == 200 and row["quartiles"] == "100.0 to 400.0"
    assert row["MFU %"] == 50 and same["MFU %"] is None
    # Only of what is known.
    (row,) = cost_rows([made, other])
    assert row["compiling s"] == 12.35


def test_references_that_are_not_there(monkeypatch):
    from vt_flax.analysis.references import beside

    there = {"torch"}
    monkeypatch.setattr(
        beside.importlib.util, "find_spec", lambda name: name in there or None
    )
    names = ["flax_resnet", "torch", "timm", "torch"]
    found, notes = step_rate.find_references(names, config_of("vt_resnet18"))
    assert found == ["flax_resnet", "torch"]
    assert notes == ["timm is left out: timm is not installed: pip install timm"]
    there.clear()
    found, notes = step_rate.find_references(names[1:], config_of("resnet18"))
    assert not found and "torch is not installed" in notes[1]

    for name, options in (("se_resnet18", {}), ("resnet50", {"variant": "msra"})):
        found, notes = step_rate.find_references(names[:1], config_of(name, **options))
        assert not found and len(notes) == 1
    assert "variant msra" in notes[0]
    with pytest.raises(UserError, match="did you mean flax_resnet"):
        step_rate.find_references(["flax"], config_of("resnet18"))
