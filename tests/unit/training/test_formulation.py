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
    """Chooses on a device that stands for another one."""
    device = types.SimpleNamespace(id=0, platform=platform, device_kind=kind)
    mesh = types.SimpleNamespace(local_devices=[device])
    return formulation.choose_formulation(model, (4, 4), mesh, 8, workdir)


@pytest.fixture
def here(monkeypatch):
    """Runs trials on a device of this machine."""

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


def test_formulations_that_agree_are_timed(here, tmp_path):
    choice = choose(Network(), tmp_path)
    line = r"formulation: \w+ \(auto on NVIDIA H200; printed [\d.]+ ms, folded .* ms\)"
    assert re.fullmatch(line, choice.line)
    assert choose(Network("fused"), tmp_path).model == Network("fused")
    # A device has a part of the examples of a BatchNorm group.
    model = Network("folded", bn_group_size=16)
    assert choose(model, tmp_path).model == model


def raising(error):
    def fused(logits):
        raise error

    return fused


@pytest.mark.parametrize(
    "fused, problem",
    [
        (
            lambda y: jnp.roll(y, 1, axis=-1),
            "logits differ from .* by 1[0-9.]+%",
        ),
        (lambda y: 2 * y - jax.lax.stop_gradient(y), "gradients differ .* by 100.0%"),
        (lambda y: y * jnp.nan, "logits are not finite"),
        (raising(NotImplementedError("no such kernel\nat all")), "no such kernel"),
        (raising(MEMORY), "out of memory"),
    ],
)
def test_a_formulation_with_a_problem(fused, problem, here, tmp_path):
    """`auto` leaves it out; it is an error where it is configured."""
    choice = choose(Network(fused=fused), tmp_path)
    assert choice.model.formulation != "fused"
    assert re.search(rf" ms, fused left out: {problem}\)$", choice.line)
    with pytest.raises(UserError, match=f"=fused on NVIDIA H200: {problem}: set .*=pr"):
        choose(Network("fused", fused=fused), tmp_path)


def test_printed_without_memory_is_not_chosen(here, tmp_path):
    """The others are compared with it on as many examples as it has memory for."""
    model = Network(fused=lambda y: jnp.roll(y, 1, axis=-1), fits=2)
    choice = choose(model, tmp_path)
    assert choice.model.formulation == "folded"
    assert "printed left out: out of memory with 8 examples" in choice.line
    assert "fused left out: logits differ" in choice.line


def test_the_fastest_is_chosen_and_kept(times, tmp_path):
    """On devices of the same kind; on others the formulations are timed again."""
    times(Trial(31.2), Trial(29.84), Trial(None, "out of memory"))
    choice = choose(Network(), tmp_path)
    assert choice.model == Network("folded")
    assert choice.line == (
        "formulation: folded (auto on NVIDIA H200; printed 31.2 ms, folded 29.8 ms, "
        "fused left out: out of memory)"
    )
    choice.write(tmp_path)
    record = json.loads((tmp_path / formulation.FILE).read_text())
    assert record == {"formulation": "folded", "device": "NVIDIA H200"}
    times()
    again = choose(Network(), tmp_path)
    assert again.model == Network("folded") and "kept from" in again.line
    times(Trial(2.0), Trial(), Trial(1.0))
    other = choose(Network(), tmp_path, kind="TPU v5", platform="tpu")
    assert other.model == Network("fused") and "folded the same program" in other.line
    (tmp_path / formulation.FILE).write_text("")
    times(Trial(1.0), Trial(3.0), Trial(2.0))
    assert choose(Network(), tmp_path).model == Network("printed")


def test_nothing_is_timed_on_cpus_or_without_a_choice(times, tmp_path):
    choice = choose(Network(), tmp_path, kind="cpu", platform="cpu")
    assert choice.model == Network("folded") and "BENCHMARKS.md" in choice.line
    for model, platform in (
        (Network("fused"), "cpu"),
        (Network("printed"), "gpu"),
        (nn.Dense(3), "gpu"),
    ):
        choice = choose(model, tmp_path, platform=platform)
        assert choice == formulation.Choice(model)
        choice.write(tmp_path)
    assert not any(tmp_path.iterdir())
