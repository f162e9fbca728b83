"""Peak figures of this machine: published, or measured here."""

import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import psutil
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vt_flax.models.registry import DTYPES
from vt_flax.parallel import devices as jax_devices
from vt_flax.parallel.mesh import batch_sharding, make_mesh, replicated
from vt_flax.plan.topology import CHIP_OF_KIND, HERE, Chip, Topology

# Bytes of the arrays that are copied, and of those that are all-reduced.
COPIED, COPIED_ON_CPUS = 2**30, 2**27
REDUCED = 2**25
# Seconds to measure each of these, and least runs.
SECONDS, RUNS = 0.5, 3
# The peak is measured by a product of matrices that takes at least so long.
PRODUCT_SECONDS = 0.05


def start_devices(config: ConfigDict) -> None:
    """Starts this machine's devices, without a cache of compiled programs.

    Raises:
      UserError: if JAX starts none.
    """
    jax_devices.use_cpu_devices(config.parallel.cpu_devices)
    jax_devices.start_devices()


def published_peak(device_kind: str, dtype: str) -> float | None:
    """Returns the peak FLOP/s of one JAX device; None if it is not in the table.

    Args:
      device_kind: its name in JAX.
      dtype: name of the operands' dtype.
    """
    if device_kind not in CHIP_OF_KIND:
        return None
    device = CHIP_OF_KIND[device_kind].device
    return (
        (device.float32_flops or device.flops) if dtype == "float32" else device.flops
    )


def measured_peak(mesh: Mesh, dtype: str) -> float:
    """Returns the FLOP/s of the fastest matrix product, on all devices at once.

    Each device multiplies two square matrices of its own, twice as large each time
    until a product takes PRODUCT_SECONDS.
    """
    best, side = 0.0, 256
    multiply = jax.jit(lambda a: jnp.einsum("nij,njk->nik", a, a))
    while True:
        seconds = _seconds(multiply, _ones(mesh, (side, side), dtype))
        best = max(best, 2 * mesh.size * side**3 / seconds)
        if seconds > PRODUCT_SECONDS:
            return best
        side *= 2


def this_machine(config: ConfigDict) -> Topology:
    """Starts this machine's devices, and returns them with their measured figures.

    All devices work at once, and the fastest of some runs counts: FLOP/s by a product
    of square matrices, memory bandwidth by a scaled copy (bytes read and written),
    bandwidth between devices by an all-reduce.

    Args:
      config: a resolved configuration: its sections `model` and `parallel`.

    Raises:
      UserError: if JAX starts no device.
    """
    start_devices(config)
    return _measured(make_mesh(fsdp=config.parallel.fsdp), config.model.dtype)


@functools.cache
def _measured(mesh: Mesh, dtype: str) -> Topology:
    device = mesh.devices.flat[0]
    known = CHIP_OF_KIND.get(device.device_kind)
    devices = known.devices if known else 1
    chips = mesh.size // devices
    stats = device.memory_stats() or {}
    memory = stats.get("bytes_limit", psutil.virtual_memory().total // mesh.size)
    size = COPIED_ON_CPUS if device.platform == "cpu" else COPIED
    copying = _seconds(jax.jit(lambda x: x * 2), _ones(mesh, (size // 4,), "float32"))
    link = 0.0
    if chips > 1:
        add = jax.jit(lambda x: x.sum(0), out_shardings=replicated(mesh))
        reducing = _seconds(add, _ones(mesh, (REDUCED // 4,), "float32"))
        # A chip in a row has two links, which the all-reduce has used together.
        link = 2 * REDUCED * (chips - 1) / chips / reducing / min(2, chips - 1)
    chip = Chip(
        name=device.device_kind,
        flops=measured_peak(mesh, dtype) / chips,
        memory=memory * devices,
        bandwidth=2 * size / copying * devices,
        link=link,
        one_host=chips,
        source="measured here",
        devices=devices,
        cached=device.platform != "tpu",
    )
    return Topology(HERE, chip, (chips,))


def _ones(mesh: Mesh, shape: tuple[int, ...], dtype: str) -> jax.Array:
    """Returns an array of ones with a first axis over the devices."""
    make = jax.jit(
        lambda: jnp.ones((mesh.size, *shape), DTYPES[dtype]),
        out_shardings=batch_sharding(mesh),
    )
    return make()


def _seconds(run: Callable[[jax.Array], jax.Array], x: jax.Array) -> float:
    """Returns the seconds of the fastest run, after one that compiles."""
    jax.block_until_ready(run(x))
    times: list[float] = []
    while sum(times) < SECONDS or len(times) < RUNS:
        begin = time.perf_counter()
        jax.block_until_ready(run(x))
        times.append(time.perf_counter() - begin)
    return min(times)
