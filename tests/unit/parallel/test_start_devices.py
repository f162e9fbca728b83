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
def test_a_missing_platform_is_one_line():
    program = (
        "from vt_flax.cli.startup import run\n"
        "from vt_flax.parallel.devices import start_devices\n"
        "run(lambda argv: start_devices())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"JAX_PLATFORMS": "cuda"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: JAX starts no device: ")
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(has_nvidia, reason="needs a machine without an NVIDIA GPU")
def test_an_unused_gpu_is_named_by_jax():
    """JAX's own warning of an unused accelerator is visible."""
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
    "message, advice",
    [
        (
            "'cuda': INTERNAL: no supported devices found\nmore",
            "driver of 580 or newer",
        ),
        ("'cuda': Backend 'cuda' is not in the list of known backends: ['cpu']", "pip"),
        ("'tpu': ABORTED: the TPU is already in use", "end the other process"),
        ("'tpu': UNKNOWN: something else", ""),
    ],
)
def test_devices_that_jax_cannot_start_are_an_error(message, advice, monkeypatch):
    def fail():
        raise RuntimeError(f"Unable to initialize backend {message}")

    monkeypatch.setattr(jax, "devices", fail)
    with pytest.raises(UserError) as found:
        devices.start_devices()
    head, _, tail = str(found.value).partition("; ")
    first = message.splitlines()[0]
    assert head == f"JAX starts no device: Unable to initialize backend {first}"
    assert advice in tail and bool(advice) == bool(tail)
