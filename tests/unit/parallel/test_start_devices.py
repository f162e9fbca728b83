"""Devices that JAX cannot start, and those that it leaves unused."""

import glob
import os
import subprocess
import sys

import jax
import pytest

from vt_flax.errors import UserError
from vt_flax.parallel import devices

has_nvidia = bool(glob.glob("/dev/nvidia*"))


@pytest.mark.skipif(has_nvidia, reason="needs a machine without an NVIDIA GPU")
def test_jax_warns_of_an_unused_gpu():
    """The warning is JAX's own, and the commands do not hide it."""
    program = (
        "from jax._src import hardware_utils\n"
        "from vt_flax.cli.startup import run\n"
        "from vt_flax.parallel.devices import start_devices\n"
        "hardware_utils.has_visible_nvidia_gpu = lambda: True\n"
        "run(lambda argv: start_devices())"
    )
    env = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=env | {"TPU_SKIP_MDS_QUERY": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "An NVIDIA GPU may be present on this machine" in done.stderr


@pytest.mark.parametrize(
    "error, reason",
    [
        (
            RuntimeError("no supported devices found\nmore"),
            "no supported devices found",
        ),
        # JAX_PLATFORMS=cuda without an NVIDIA device.
        (AssertionError(), "none for .* found"),
    ],
)
def test_a_device_that_jax_cannot_start_is_one_line(error, reason, monkeypatch):
    def fail():
        raise error

    monkeypatch.setattr(jax, "devices", fail)
    with pytest.raises(UserError, match=f"^JAX starts no device: {reason}; see docs"):
        devices.start_devices()
