"""The devices that JAX starts with, and accelerators of this machine that it misses."""

import importlib.util
import os
import pathlib
import shutil
import subprocess

import jax

from vt_flax.errors import UserError, first_line
from vt_flax.parallel import processes

# Where device files are.
ROOT = pathlib.Path("/")
# The PCI vendor of Google, whose only devices with a VFIO driver are TPUs.
GOOGLE = "0x1ae0"
CUDA_PLUGINS = ("jax_cuda13_plugin", "jax_cuda12_plugin")


def start_devices() -> str:
    """Starts JAX's devices.

    Returns:
      A note that names an accelerator of this machine that JAX does not use, and what
      to install for it; empty if there is none, or `JAX_PLATFORMS` is set.

    Raises:
      UserError: if JAX cannot start them, as with a driver that is too old.
      Lost: if that is because another process is gone.
    """
    try:
        backend = jax.default_backend()
    except AssertionError as error:
        # JAX passes over CUDA where there is no NVIDIA device file; then none is left.
        raise UserError(
            f"JAX starts no device: this machine has none of JAX_PLATFORMS="
            f"{jax.config.jax_platforms}: unset it, or check the driver (nvidia-smi)"
        ) from error
    except RuntimeError as error:
        processes.raise_if_lost()
        advice = ""
        if "cuda" in str(error):
            advice = (
                '; jax[cuda13] needs an NVIDIA driver of 580 or newer, "jax[cuda12]" '
                "one of 525 or newer"
            )
        if "known backends" in str(error):
            advice = '; pip install "jax[cuda13]" for GPUs, "jax[tpu]" for TPUs'
        if "in use" in str(error):
            advice = "; end the other process, or set JAX_PLATFORMS=cpu"
        raise UserError(f"JAX starts no device: {first_line(error)}{advice}") from error
    if backend != "cpu" or jax.config.jax_platforms:
        return ""
    if has_tpu():
        unused, advice = "a TPU", "libtpu is installed but finds no chip"
        if not importlib.util.find_spec("libtpu"):
            advice = 'pip install "jax[tpu]", or install vt_flax with its extra tpu'
    elif unused := nvidia_gpu():
        advice = (
            "its CUDA plugin is installed but does not start; see its message above"
        )
        if not any(map(importlib.util.find_spec, CUDA_PLUGINS)):
            advice = 'pip install "jax[cuda13]", or install vt_flax with its extra cuda'
    else:
        return ""
    return f"JAX computes on the CPU and leaves {unused} unused: {advice}"


def nvidia_gpu() -> str:
    """Returns the name of the machine's first NVIDIA GPU that this process may use."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return ""
    if program := shutil.which("nvidia-smi"):
        words = [program, "--query-gpu=name", "--format=csv,noheader"]
        try:
            listed = subprocess.run(words, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return ""
        names = listed.stdout.split("\n")
        return names[0].strip() if listed.returncode == 0 else ""
    # A container may lack the driver's programs.
    return "an NVIDIA GPU" if (ROOT / "dev/nvidia0").exists() else ""


def has_tpu() -> bool:
    """Returns whether this machine has a TPU."""
    if (ROOT / "dev/accel0").exists() or os.environ.get("TPU_ACCELERATOR_TYPE"):
        return True
    vendors = ROOT.glob("sys/bus/pci/devices/*/vendor")
    return (ROOT / "dev/vfio/0").exists() and any(
        vendor.read_text().strip() == GOOGLE for vendor in vendors
    )
