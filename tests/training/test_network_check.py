"""The look at a network's kernels before training."""

import jax
import numpy as np
import pytest

from vt_flax.errors import UserError
from vt_flax.models import create_model
from vt_flax.nn import projector
from vt_flax.parallel.mesh import make_mesh
from vt_flax.training import network_check

OPTIONS = {
    "stage_sizes": [1, 1, 1, 2],
    "width": 8,
    "token_channels": 64,
    "group_channels": 16,
    "num_classes": 10,
    "stem": "small",
    "survival_probability": 0.9,
}
SIZE = (16, 16)


def model(**options):
    return create_model("vt_resnet18", **OPTIONS | options)


def test_formulations_agree():
    network_check.compare(model(dtype="bfloat16"), SIZE, jax.devices()[0])


@pytest.mark.parametrize("wrong", [0.5, np.nan])
def test_a_kernel_that_is_wrong(wrong, monkeypatch):
    right = projector.write_back

    def write_back(x, keys, values, *args, **options):
        return right(x, keys, values * wrong, *args, **options)

    monkeypatch.setattr(projector, "write_back", write_back)
    with pytest.raises(UserError, match="give other .* model.formulation=printed"):
        network_check.compare(model(), SIZE, jax.devices()[0])


def test_kernels_that_do_not_run(monkeypatch):
    def write_back(*args, **options):
        raise NotImplementedError("no such chip\nat all")

    monkeypatch.setattr(projector, "write_back", write_back)
    with pytest.raises(UserError, match="does not run the kernels: no such chip: set"):
        network_check.compare(model(), SIZE, jax.devices()[0])


@pytest.mark.parametrize(
    "platform, options, looked",
    [("tpu", "fused", True), ("tpu", "printed", False), ("cpu", "fused", False)],
)
def test_who_is_looked_at(platform, options, looked, monkeypatch):
    seen = []
    monkeypatch.setattr(network_check, "compare", lambda *args: seen.append(args))
    mesh = make_mesh()

    class Device:
        id = 0

        def __init__(self):
            self.platform = platform

    class Devices:
        local_devices = [Device(), *mesh.local_devices[1:]]

    network_check.check_network(model(formulation=options), SIZE, Devices)
    assert bool(seen) == looked
    network_check.check_network(create_model("resnet18"), SIZE, Devices)
    assert bool(seen) == looked
