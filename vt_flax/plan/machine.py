"""Peak figures of this machine for a roofline: measured, or stated."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import psutil
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vt_flax.parallel.mesh import BATCH_AXES
from vt_flax.plan.peaks import measured_peak
from vt_flax.plan.topology import HERE, OF_KIND, Chip, Topology

# Bytes of the arrays that are read and written, and of those that are added up over
# devices.
COPIED, COPIED_BY_CPUS = 2**30, 2**27
REDUCED = 2**25
SECONDS = 0.5


def this_machine(
    mesh: Mesh, dtype: str, flops: float = 0.0, bandwidth: float = 0.0
) -> Topology:
    """Returns this machine's devices with their figures, all devices at work at once.

    What is not stated is measured, the best of some runs: operations by a product of
    square matrices, bandwidth by a scaled copy (bytes read and written), what devices
    send each other by adding up an array over them.

    Args:
      mesh: all of its devices.
      dtype: of the matrices: the network's.
      flops: operations per second of a device, if stated.
      bandwidth: bytes per second of a device's memory, if stated.
    """
    device = mesh.devices.flat[0]
    known = OF_KIND.get(device.device_kind)
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
    bandwidth = bandwidth or _bandwidth(mesh, COPIED_BY_CPUS if on_cpus else COPIED)
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


def _bandwidth(mesh: Mesh, size: int) -> float:
    seconds = _best(jax.jit(lambda x: x * 2), _spread(mesh, (size // 4,), jnp.float32))
    return 2 * size / seconds


def _link(mesh: Mesh, chips: int) -> float:
    """Returns the bytes per second that a chip sends in an all-reduce."""
    whole = NamedSharding(mesh, PartitionSpec())
    add = jax.jit(lambda x: x.sum(0), out_shardings=whole)
    seconds = _best(add, _spread(mesh, (REDUCED // 4,), jnp.float32))
    return 2 * REDUCED * (chips - 1) / chips / seconds


def _spread(mesh: Mesh, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Returns an array of ones for each device."""
    sharding = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    make = jax.jit(lambda: jnp.ones((mesh.size, *shape), dtype), out_shardings=sharding)
    return make()


def _best(run: Callable[[jax.Array], jax.Array], x: jax.Array) -> float:
    """Returns the seconds of the quickest run of those that fit into SECONDS."""
    jax.block_until_ready(run(x))
    times: list[float] = []
    while sum(times) < SECONDS or len(times) < 3:
        begin = time.perf_counter()
        jax.block_until_ready(run(x))
        times.append(time.perf_counter() - begin)
    return float(np.min(times))
