"""The choice of a formulation: trials on a device, and what a run makes of them."""

import json
import re
import types
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from vt_flax.errors import UserError
from vt_flax.fused.selection import Trial, try_formulations
from vt_flax.training import formulation

SIZE = (4, 4)
MEMORY = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: too much")


class Network(nn.Module):
    """Two linear maps, whose matrices `folded` multiplies first.

    Attributes:
      fused: applied to the logits in the formulation `fused`.
      fits: number of examples that `printed` has memory for.
      bn_group_size: must divide the number of examples.
    """

    formulation: str = "auto"
    fused: Callable = lambda logits: logits * 1.01
    fits: int = 8
    bn_group_size: int = 0

    @nn.compact
    def __call__(self, x, train=False):
        assert not (train and self.bn_group_size and len(x) % self.bn_group_size)
        x = nn.BatchNorm(use_running_average=not train)(jnp.mean(x, axis=(1, 2)))
        x = nn.Dropout(0.1, deterministic=not train)(x)
        a, b = (self.param(name, nn.initializers.normal(1.0), (3, 3)) for name in "ab")
        if self.formulation == "folded":
            return x @ (a @ b)
        if self.formulation == "printed" and len(x) > self.fits:
            raise MEMORY
        logits = x @ a @ b
        return self.fused(logits) if self.formulation == "fused" else logits

    @nn.nowrap
    def computed_by(self):
        """The formulation that was measured on CPUs."""
        return "folded"


def choose(model, workdir, *, kind="NVIDIA H200", platform="gpu"):
    """Chooses on what poses as another device."""
    device = types.SimpleNamespace(id=0, platform=platform, device_kind=kind)
    mesh = types.SimpleNamespace(local_devices=[device])
    return formulation.choose_formulation(model, SIZE, mesh, 8, workdir)


@pytest.fixture
def here(monkeypatch):
    """Runs trials on a device that is here."""

    def on_cpus(make, size, device, *others, **options):
        return try_formulations(make, size, jax.devices()[1], *others, **options)

    monkeypatch.setattr(formulation, "try_formulations", on_cpus)


@pytest.fixture
def times(monkeypatch):
    """Sets the trials of printed, folded and fused; none is expected until it does."""

    def set_times(*trials):
        monkeypatch.setattr(
            formulation, "try_formulations", lambda *_, **__: iter(trials)
        )

    set_times()
    return set_times


def test_formulations_that_agree(here, tmp_path):
    """All are timed, and none is refused."""
    record = choose(Network(), tmp_path).record
    assert record["left_out"] == {}
    found = record["milliseconds"]
    assert list(found) == ["printed", "folded", "fused"] and min(found.values()) > 0
    assert record["formulation"] == min(found, key=found.get)
    assert choose(Network("fused"), tmp_path).model == Network("fused")


def test_batch_norm_groups_of_several_devices(here, tmp_path):
    """A device has only a part of their examples."""
    model = Network("folded", bn_group_size=16)
    assert choose(model, tmp_path).model == model


def raising(error):
    def fused(logits):
        raise error

    return fused


@pytest.mark.parametrize(
    "fused, problem",
    [
        (lambda y: jnp.roll(y, 1, axis=-1), "logits differ from printed's by 1[0-9]"),
        (lambda y: 2 * y - jax.lax.stop_gradient(y), "gradients differ .* by 100.0%$"),
        (lambda y: y * jnp.nan, "logits are not finite$"),
        (raising(NotImplementedError("no such kernel\nat all")), "no such kernel$"),
        (raising(NotImplementedError()), "NotImplementedError$"),
        (raising(MEMORY), "out of memory$"),
    ],
)
def test_a_formulation_with_a_problem(fused, problem, here, tmp_path):
    """`auto` leaves it out; it is an error where it is configured."""
    choice = choose(Network(fused=fused), tmp_path)
    ((name, reason),) = choice.record["left_out"].items()
    assert name == "fused" and re.match(problem, reason)
    assert list(choice.record["milliseconds"]) == ["printed", "folded"]
    assert choice.line.endswith(f" ms, fused left out: {reason})")

    with pytest.raises(UserError) as refusal:
        choose(Network("fused", fused=fused), tmp_path)
    assert str(refusal.value) == (
        f"model.formulation=fused on NVIDIA H200: {reason}: set "
        "--config.model.formulation=printed, and report it"
    )


def test_a_formulation_with_the_program_of_another_is_not_run(here, tmp_path):
    same = {"fused": lambda y: y}
    choice = choose(Network(**same), tmp_path)
    assert list(choice.record["milliseconds"]) == ["printed", "folded"]
    assert choice.line.endswith(" ms, fused the same program)")
    assert choose(Network("fused", **same), tmp_path).record == {}


def test_printed_without_memory_is_not_chosen(here, tmp_path):
    """The others are compared with it on as many examples as it has memory for."""
    model = Network(fused=lambda y: jnp.roll(y, 1, axis=-1), fits=2)
    choice = choose(model, tmp_path)
    assert choice.model.formulation == "folded"
    reasons = choice.record["left_out"]
    assert reasons["printed"] == "out of memory with 8 examples"
    assert reasons["fused"].startswith("logits differ")
    # Not even one.
    with pytest.raises(jax.errors.JaxRuntimeError):
        choose(model.clone(fits=0), tmp_path)


def test_the_fastest_is_chosen(times, tmp_path):
    times(Trial(31.2), Trial(29.84), Trial(None, "out of memory"))
    choice = choose(Network(), tmp_path)
    assert choice.model == Network("folded")
    assert choice.line == (
        "formulation: folded (auto on NVIDIA H200; printed 31.2 ms, folded 29.8 ms, "
        "fused left out: out of memory)"
    )
    choice.write(tmp_path)
    (file,) = tmp_path.iterdir()
    assert json.loads(file.read_text()) == {
        "formulation": "folded",
        "device": "NVIDIA H200",
        "milliseconds": {"printed": 31.2, "folded": 29.84},
        "left_out": {"fused": "out of memory"},
    }


def test_a_resumed_run_keeps_its_choice(times, tmp_path):
    """On devices of the same kind."""
    times(Trial(3.0), Trial(2.0), Trial(1.0))
    choose(Network(), tmp_path).write(tmp_path)
    times()
    choice = choose(Network(), tmp_path)
    assert choice.model == Network("fused")
    assert choice.line == (
        "formulation: fused (auto on NVIDIA H200: kept from formulation.json)"
    )
    times(Trial(2.0), Trial(1.0), Trial(3.0))
    choice = choose(Network(), tmp_path, kind="TPU v5", platform="tpu")
    assert "folded (auto on TPU v5; printed 2.0 ms" in choice.line
    choice.write(tmp_path)
    # Which is kept in turn; what is no record is not.
    times()
    again = choose(Network(), tmp_path, kind="TPU v5", platform="tpu")
    assert (again.model, again.record) == (choice.model, {})
    for damage in ("", "[]", '{"device": "TPU v5", "formulation": "quick"}'):
        (tmp_path / formulation.FILE).write_text(damage)
        times(Trial(2.0), Trial(3.0), Trial(1.0))
        choice = choose(Network(), tmp_path, kind="TPU v5", platform="tpu")
        assert choice.model == Network("fused")


def test_nothing_is_timed_on_cpus(times, tmp_path):
    choice = choose(Network(), tmp_path, kind="cpu", platform="cpu")
    assert choice.line == (
        "formulation: folded (auto on cpu: fastest by BENCHMARKS.md)"
    )
    choice.write(tmp_path)
    again = choose(Network(), tmp_path, kind="cpu", platform="cpu")
    assert again.record == {} and "kept" in again.line
    assert again.model == Network("folded")


def test_what_is_left_as_it_is(times, tmp_path):
    """Configured formulations on CPUs, `printed`, and networks without the option."""
    for model, platform in (
        (Network("fused"), "cpu"),
        (Network("printed"), "gpu"),
        (nn.Dense(3), "gpu"),
    ):
        choice = choose(model, tmp_path, platform=platform)
        assert choice == formulation.Choice(model)
        choice.write(tmp_path)
    assert not any(tmp_path.iterdir())
