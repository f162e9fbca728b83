"""Notes on accelerators that JAX does not use, and errors of devices."""

import glob
import importlib.util
import os
import subprocess
import sys

import jax
import pytest

from vt_flax import cli
from vt_flax.errors import UserError
from vt_flax.parallel import accelerators


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine without accelerators, on which the user has chosen no platform."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("TPU_ACCELERATOR_TYPE", raising=False)
    monkeypatch.setattr(accelerators, "ROOT", tmp_path)
    chosen = jax.config.jax_platforms
    jax.config.update("jax_platforms", None)
    yield tmp_path
    jax.config.update("jax_platforms", chosen)


def put(file, text=""):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def install_nvidia_smi(folder, lines, status=0):
    """Writes a stub of NVIDIA's program, which knows one question."""
    program = folder / "nvidia-smi"
    program.write_text(
        '#!/bin/sh\n[ "$*" = "--query-gpu=name --format=csv,noheader" ] || exit 2\n'
        + "".join(f"echo '{line}'\n" for line in lines)
        + f"exit {status}\n"
    )
    program.chmod(0o755)


def test_an_unused_gpu_is_named_with_what_to_install(machine, capsys):
    install_nvidia_smi(machine, ["NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-40GB"])
    cli.start_devices()
    told = capsys.readouterr()
    assert told.out == ""
    (line,) = told.err.splitlines()
    assert line.startswith("note: JAX computes on the CPU and leaves NVIDIA A100-SXM4")
    assert 'pip install "jax[cuda13]"' in line and "extra cuda" in line


@pytest.mark.parametrize("hidden", ["platform", "", "-1", "failing", "absent"])
def test_nothing_is_said_where_no_gpu_is_to_be_used(hidden, machine, monkeypatch):
    if hidden != "absent":
        install_nvidia_smi(machine, ["NVIDIA L4"], 9 if hidden == "failing" else 0)
    if hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    if hidden == "platform":
        jax.config.update("jax_platforms", "cpu")
    assert accelerators.start_devices() == ""


def test_nothing_is_said_where_jax_uses_the_gpu(machine, monkeypatch):
    install_nvidia_smi(machine, ["NVIDIA L4"])
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert accelerators.start_devices() == ""


def test_a_device_file_is_enough_in_a_container(machine):
    put(machine / "dev/nvidia0")
    assert accelerators.start_devices().endswith("its extra cuda")


def test_a_cuda_plugin_that_does_not_start_is_not_installed_again(machine, monkeypatch):
    install_nvidia_smi(machine, ["NVIDIA L4"])
    there = {"jax_cuda12_plugin"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: {name} & there)
    note = accelerators.start_devices()
    assert "leaves NVIDIA L4 unused" in note and "does not start" in note


@pytest.mark.skipif(
    bool(glob.glob("/dev/nvidia*")), reason="this machine has what it is to lack"
)
def test_a_platform_that_is_not_there_is_one_line():
    code = "from vt_flax.parallel import accelerators; accelerators.start_devices()"
    program = f"from vt_flax import cli; cli.run(lambda argv: exec({code!r}))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"JAX_PLATFORMS": "cuda"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: JAX starts no device: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("libtpu", [None, "spec"])
@pytest.mark.parametrize("place", ["dev/accel0", "dev/vfio/0", "environment"])
def test_an_unused_tpu(place, libtpu, machine, monkeypatch):
    put(machine / "sys/bus/pci/devices/0000:00:04.0/vendor", "0x1ae0\n")
    if place == "environment":
        monkeypatch.setenv("TPU_ACCELERATOR_TYPE", "v5litepod-1")
    else:
        put(machine / place)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: libtpu)
    note = accelerators.start_devices()
    assert "on the CPU and leaves a TPU unused" in note
    assert ('pip install "jax[tpu]"' in note) == (libtpu is None)
    assert ("finds no chip" in note) == (libtpu is not None)


def test_vfio_of_another_vendor_is_no_tpu(machine):
    put(machine / "dev/vfio/0")
    put(machine / "sys/bus/pci/devices/0000:00:04.0/vendor", "0x10de\n")
    assert accelerators.start_devices() == ""


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

    monkeypatch.setattr(jax, "default_backend", fail)
    with pytest.raises(UserError) as found:
        accelerators.start_devices()
    head, _, tail = str(found.value).partition("; ")
    first = message.splitlines()[0]
    assert head == f"JAX starts no device: Unable to initialize backend {first}"
    assert advice in tail and bool(advice) == bool(tail)
