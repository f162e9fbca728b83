"""The mesh of devices, and how arrays are sharded over it."""

import contextlib
import math
import platform
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vt_flax.errors import UserError
from vt_flax.experimental import mesh_utils

# Batches are sharded over both axes, parameters over the second alone.
BATCH_AXES = ("data", "fsdp")
# Smaller arrays are replicated: gathering them costs more than their memory is worth.
LEAST_SHARDED = 2**14


def make_mesh(devices: Sequence[jax.Device] | None = None, fsdp: int = 1) -> Mesh:
    """Returns a mesh of `data` x `fsdp`, laid out by the physical topology.

    An `fsdp` group lies in one slice, since slices are connected by a slower network.

    Args:
      devices: all devices by default.
      fsdp: number of devices over which parameters and optimizer state are sharded.

    Raises:
      UserError: if `fsdp` does not divide the devices of a slice.
    """
    devices = list(devices if devices is not None else jax.devices())
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    each = len(devices) // slices
    if fsdp < 1 or each % fsdp:
        raise UserError(
            f"parallel.fsdp {fsdp}: must divide the {each} devices"
            f"{' of a slice' if slices > 1 else ''}"
        )
    shape = (each // fsdp, fsdp)
    # Chips of two-dimensional tori have no axis to spare for a second one.
    options = {"allow_split_physical_axes": True}
    try:
        if slices > 1:
            grid = mesh_utils.create_hybrid_device_mesh(
                shape, (slices, 1), devices, **options
            )
        else:
            grid = mesh_utils.create_device_mesh(shape, devices, **options)
    # JAX lays out neither chips with two devices (v2, v3, v4 without megacore) nor
    # shapes that do not fit the torus: these take the order of the devices' ids.
    except (AssertionError, NotImplementedError):
        grid = np.asarray(devices).reshape(slices * shape[0], shape[1])
    return Mesh(grid, BATCH_AXES, axis_types=(AxisType.Auto, AxisType.Auto))


def describe(mesh: Mesh) -> str:
    """Returns `8 cpu devices (cpu)`, or `2 gpu devices (NVIDIA H100 NVL)`."""
    devices = mesh.devices.flatten()
    kinds = ", ".join(sorted({device.device_kind for device in devices}))
    plural = "s" if len(devices) > 1 else ""
    return f"{len(devices)} {devices[0].platform} device{plural} ({kinds})"


def banner(mesh: Mesh) -> str:
    """Returns `process 0 of 2 on HOST: 4 cpu devices, mesh data 2 x fsdp 2`."""
    axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    return (
        f"process {jax.process_index()} of {jax.process_count()} on "
        f"{platform.node()}: {describe(mesh)}, mesh {axes}"
    )


def on_devices_of(mesh: Mesh) -> contextlib.AbstractContextManager:
    """Returns the context to apply a network in: Pallas kernels shard by its mesh."""
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: the first axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array that is copied to every device."""
    return NamedSharding(mesh, PartitionSpec())


def state_sharding(mesh: Mesh, state: Any) -> Any:
    """Returns a sharding for each array of a state, or of its shapes.

    Large arrays are sharded over `fsdp` along their longest axis that it divides; the
    others are replicated. A sharding depends on the shape alone, so a parameter, its
    gradient, its EMA and its optimizer state are sharded alike.
    """
    size = mesh.shape["fsdp"]

    def one(array: Any) -> NamedSharding:
        axes = [i for i, length in enumerate(array.shape) if length % size == 0]
        if size == 1 or not axes or math.prod(array.shape) < LEAST_SHARDED:
            return replicated(mesh)
        # Of equal axes the last: a convolution's output channels.
        longest = max(axes, key=lambda i: (array.shape[i], i))
        return NamedSharding(mesh, PartitionSpec(*[None] * longest, "fsdp"))

    return jax.tree.map(one, state)


def local_indices(mesh: Mesh, batch: int, process: int | None = None) -> np.ndarray:
    """Returns the indices in a global batch of a process's examples, ascending.

    They may have gaps: on a torus, the devices of a host may be far apart in the mesh.

    Args:
      mesh: the devices.
      batch: number of examples in the global batch.
      process: index of the process; this one by default.
    """
    process = jax.process_index() if process is None else process
    slices = batch_sharding(mesh).devices_indices_map((batch,))
    shards = [
        np.arange(batch)[shard]
        for device, (shard,) in slices.items()
        if device.process_index == process
    ]
    return np.sort(np.concatenate(shards))


def to_global(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, Any]:
    """Returns global arrays from each process's examples: see `local_indices`.

    The copy to the devices is asynchronous.
    """
    sharding = batch_sharding(mesh)
    # The training loop disallows every other transfer.
    with jax.transfer_guard_host_to_device("allow"):
        return {
            name: jax.make_array_from_process_local_data(sharding, array)
            for name, array in batch.items()
        }


def put_whole(value: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """Shards an array that every process holds in full."""
    return jax.make_array_from_callback(
        value.shape, sharding, lambda index: value[index]
    )
