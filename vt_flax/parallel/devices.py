"""Starts JAX's devices, as a configuration asks for them."""

import jax
from ml_collections import ConfigDict

from vt_flax.errors import UserError, first_line
from vt_flax.parallel import processes
from vt_flax.paths import typed_path


def set_up_devices(config: ConfigDict) -> None:
    """Applies `parallel.cpu_devices` and `compilation_cache`, and starts JAX's devices.

    Raises:
      UserError: if JAX has started with another number of them, or starts none.
    """
    use_cpu_devices(config.parallel.cpu_devices)
    keep_programs(config.compilation_cache)
    start_devices()


def start_devices() -> None:
    """Starts JAX's devices.

    Raises:
      UserError: if JAX starts none, as with a driver that is too old.
    """
    try:
        jax.devices()
    except (AssertionError, RuntimeError) as error:
        processes.raise_if_lost()
        # JAX_PLATFORMS=cuda without an NVIDIA device fails in a bare assertion.
        reason = first_line(error) or f"none for {jax.config.jax_platforms} found"
        raise UserError(
            f"JAX starts no device: {reason}; see docs/install.md"
        ) from error


def use_cpu_devices(count: int) -> None:
    """Sets the number of CPU devices of a process; 0 keeps JAX's default.

    Raises:
      UserError: if JAX has started with another number.
    """
    if not count:
        return
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError as error:
        if jax.default_backend() == "cpu" and jax.local_device_count() != count:
            raise UserError(
                f"parallel.cpu_devices {count}: JAX has started with "
                f"{jax.local_device_count()} in this process; set it to 0"
            ) from error


def keep_programs(folder: str) -> None:
    """Caches compiled programs in a folder, unless JAX has a cache already."""
    if folder and not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(typed_path(folder)))
