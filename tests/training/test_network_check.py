"""The look at a network's kernels before training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vt_flax.errors import UserError
from vt_flax.fused import pixel_attention, platforms
from vt_flax.models import create_model
from vt_flax.parallel.mesh import make_mesh
from vt_flax.training import network_check

pytestmark = pytest.mark.slow

OPTIONS = {
    "stage_sizes": [1, 1, 1, 2],
    "width": 16,
    "token_channels": 128,
    "group_channels": 16,
    "num_classes": 10,
    "stem": "small",
    "survival_probability": 0.9,
}
SIZE = (16, 16)


@pytest.fixture(autouse=True)
def for_tpus(monkeypatch):
    """Has kernels traced here too; what runs on CPUs is products."""
    monkeypatch.setattr(platforms, "for_tpus", lambda: True)


def model(**options):
    return create_model("vt_resnet18", **OPTIONS | options)


def compare(**options):
    network_check.compare(model(**options), SIZE, jax.devices()[0], 8)


def spoil(monkeypatch, change):
    """Puts something else in the place of kernels, on any platform."""

    def by_platform(kernel, products, *arrays, **options):
        found = platforms.by_platform(kernel, products, *arrays, **options)
        return change(found) if platforms.kernels_allowed() else found

    monkeypatch.setattr(pixel_attention, "by_platform", by_platform)


def test_kernels_agree():
    compare(dtype="bfloat16")


@pytest.mark.parametrize(
    "wrong", [lambda x: jnp.roll(x, 1, axis=-1), lambda x: x * np.nan]
)
def test_a_kernel_that_is_wrong(wrong, monkeypatch):
    spoil(monkeypatch, lambda found: jax.tree.map(wrong, found))
    with pytest.raises(UserError, match="give other .* than products.*KERNELS=0"):
        compare()
    monkeypatch.setenv(platforms.SWITCH, "0")
    compare()


def test_kernels_that_do_not_run(monkeypatch):
    def change(found):
        raise NotImplementedError("no such chip\nat all")

    spoil(monkeypatch, change)
    with pytest.raises(UserError, match="does not run the kernels: no such chip: set"):
        compare()


def test_a_network_without_kernels_is_not_run(monkeypatch):
    monkeypatch.setattr(network_check, "TOLERANCE", -1.0)
    compare(formulation="printed")
    with pytest.raises(UserError, match="than products"):
        compare()


@pytest.mark.parametrize(
    "platform, switch, looked",
    [("tpu", "1", True), ("tpu", "0", False), ("cpu", "1", False)],
)
def test_who_is_looked_at(platform, switch, looked, monkeypatch):
    seen = []
    monkeypatch.setattr(network_check, "compare", lambda *args: seen.append(args))
    mesh = make_mesh()

    class Device:
        id = 0

        def __init__(self):
            self.platform = platform

    class Devices:
        local_devices = [Device(), *mesh.local_devices[1:]]

    monkeypatch.setenv(platforms.SWITCH, switch)
    network_check.check_network(model(), SIZE, Devices, 256)
    assert [args[3] for args in seen] == [128] * looked
