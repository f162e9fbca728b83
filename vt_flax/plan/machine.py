"""Peak figures of this machine: published, or measured here."""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import psutil
from jax.sharding import Mesh

from vt_flax.models.registry import DTYPES
from vt_flax.parallel.mesh import batch_sharding, replicated
from vt_flax.plan.topology import CHIP_OF_KIND, HERE, Chip, Topology

# Bytes of the arrays that are copied, and of those that are all-reduced.
COPIED, COPIED_BY_CPUS = 2**30, 2**27
REDUCED = 2**25
SECONDS = 0.5
# The peak is measured by a product of matrices that takes at least so long.
PRODUCT_SECONDS = 0.05
TRIES = 5


def published_peak(device_kind: str, dtype: str) -> float | None:
    """Returns the peak FLOP/s of one JAX device; None if it is not in the table.

    Args:
      device_kind: its name in JAX.
      dtype: name of the operands' dtype.
    """
    chip = CHIP_OF_KIND.get(device_kind)
    if chip is None:
        return None
    return chip.device.single if dtype == "float32" else chip.device.flops


def measured_peak(mesh: Mesh, dtype: str) -> float:
    """Returns the FLOP/s of the fastest matrix product, on all devices at once.

    Each device multiplies two square matrices of its own, twice as large each time
    until a product takes PRODUCT_SECONDS.
    """
    best, side = 0.0, 256
    multiply = jax.jit(lambda a: jnp.einsum("nij,njk->nik", a, a))
    while True:
        a = _ones(mesh, (side, side), dtype)
        jax.block_until_ready(multiply(a))
        seconds = min(_seconds(multiply, a) for _ in range(TRIES))
        best = max(best, 2 * mesh.size * side**3 / seconds)
        if seconds > PRODUCT_SECONDS:
            return best
        side *= 2


def this_machine(
    mesh: Mesh, dtype: str, flops: float = 0.0, bandwidth: float = 0.0
) -> Topology:
    """Returns this machine's devices with their figures, all devices working at once.

    What is not stated is measured, the best of some runs: FLOP/s by a product of square
    matrices, memory bandwidth by a scaled copy (bytes read and written), bandwidth
    between devices by an all-reduce.

    Args:
      mesh: all of its devices.
      dtype: name of the network's dtype.
      flops: FLOP/s of a device, if stated.
      bandwidth: bytes per second of a device's memory, if stated.
    """
    device = mesh.devices.flat[0]
    known = CHIP_OF_KIND.get(device.device_kind)
    per_chip = known.devices if known else 1
    chips, on_cpus = mesh.size // per_chip, device.platform == "cpu"
    stated = " and ".join(["FLOP/s"] * bool(flops) + ["memory"] * bool(bandwidth))
    source = f"measured here{f', but for {stated}: as stated' if stated else ''}"
    if known:
        source += (
            f"; published: {known.flops / 1e12:,.4g} TFLOP/s in bfloat16, "
            f"{known.bandwidth / 1e9:,.4g} GB/s"
        )
    stats = device.memory_stats() or {}
    memory = stats.get("bytes_limit", psutil.virtual_memory().total // mesh.size)
    if not bandwidth:
        size = COPIED_BY_CPUS if on_cpus else COPIED
        bandwidth = 2 * size / _best(jax.jit(lambda x: x * 2), _vector(mesh, size))
    chip = Chip(
        name=device.device_kind,
        flops=flops * per_chip or measured_peak(mesh, dtype) / chips,
        memory=memory * per_chip,
        bandwidth=bandwidth * per_chip,
        link=_link(mesh, chips) if chips > 1 else 0.0,
        links=1,
        host_chips=chips,
        one_host=chips,
        source=source,
        cached=device.platform != "tpu",
        devices=per_chip,
    )
    return Topology(HERE, chip, (chips,))


def _link(mesh: Mesh, chips: int) -> float:
    """Returns the bytes per second that a chip sends in an all-reduce."""
    add = jax.jit(lambda x: x.sum(0), out_shardings=replicated(mesh))
    seconds = _best(add, _vector(mesh, REDUCED))
    return 2 * REDUCED * (chips - 1) / chips / seconds


def _vector(mesh: Mesh, size: int) -> jax.Array:
    """Returns a float32 array of a number of bytes on each device."""
    return _ones(mesh, (size // 4,), "float32")


def _ones(mesh: Mesh, shape: tuple[int, ...], dtype: str) -> jax.Array:
    """Returns an array of ones with a first axis over the devices."""
    make = jax.jit(
        lambda: jnp.ones((mesh.size, *shape), DTYPES[dtype]),
        out_shardings=batch_sharding(mesh),
    )
    return make()


def _best(run: Callable[[jax.Array], jax.Array], x: jax.Array) -> float:
    """Returns the seconds of the fastest of the runs that fit into SECONDS."""
    jax.block_until_ready(run(x))
    times: list[float] = []
    while sum(times) < SECONDS or len(times) < 3:
        times.append(_seconds(run, x))
    return min(times)


def _seconds(run: Callable[[jax.Array], jax.Array], x: jax.Array) -> float:
    begin = time.perf_counter()
    jax.block_until_ready(run(x))
    return time.perf_counter() - begin
