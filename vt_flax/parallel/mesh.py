"""The mesh of devices, and how arrays lie on it."""

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vt_flax.errors import UserError
from vt_flax.experimental import mesh_utils

# Examples are spread over both axes; parameters over the second, if it has a size.
BATCH_AXES = ("data", "fsdp")
# Arrays of fewer elements are copied to every device: to gather them costs more than
# the memory is worth.
LEAST_SHARDED = 2**14


def make_mesh(devices: Sequence[jax.Device] | None = None, fsdp: int = 1) -> Mesh:
    """Returns a mesh of `data` x `fsdp`, laid out by the physical topology.

    The devices of an `fsdp` group are neighbours: of one slice, where there are several
    that are joined by a slower network, and on a host where they fit.

    Args:
      devices: all by default.
      fsdp: over how many devices parameters and optimizer state are spread.

    Raises:
      UserError: if the devices are no multiple of `fsdp`, or not within a slice.
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
    # Chips whose cores are devices of their own (v2, v3, v4 as the compiler alone has
    # it), and shapes that a torus does not hold: then in the order of their numbers.
    except (AssertionError, NotImplementedError):
        grid = np.asarray(devices).reshape(slices * shape[0], shape[1])
    return Mesh(grid, BATCH_AXES, axis_types=(AxisType.Auto, AxisType.Auto))


def axes(mesh: Mesh) -> str:
    """Returns how the devices are laid out, such as `mesh data 4 x fsdp 2`."""
    return "mesh " + " x ".join(f"{name} {size}" for name, size in mesh.shape.items())


def name_devices(devices: Sequence[jax.Device]) -> str:
    """Returns the number and kind of devices.

    Such as `8 cpu devices`, or `1 gpu device (NVIDIA A100-SXM4-40GB)`.
    """
    platform = devices[0].platform
    kinds = sorted({device.device_kind for device in devices})
    text = f"{len(devices)} {platform} device{'s' if len(devices) > 1 else ''}"
    return text if kinds == [platform] else f"{text} ({', '.join(kinds)})"


def describe(mesh: Mesh) -> str:
    """Returns the devices of a mesh, as in `8 tpu devices (TPU v5e) of 2 processes`."""
    processes = jax.process_count()
    return name_devices(mesh.devices.flatten()) + (
        f" of {processes} processes" if processes > 1 else ""
    )


def on_devices_of(mesh: Mesh) -> contextlib.AbstractContextManager:
    """What a network is called within: its kernels see a device's own examples alone.

    The compiler spreads what it knows over the devices by itself; a kernel of our own
    it does not.
    """
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Examples spread over every device, along the first axis."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def state_sharding(mesh: Mesh, state: Any) -> Any:
    """Spreads the large arrays of a state over `fsdp`, each along its longest axis.

    An array's place follows from its shape alone, so that a parameter, its gradient,
    its averages and what the optimizer keeps of it lie alike.

    Args:
      mesh: the devices.
      state: arrays, or their shapes.

    Returns:
      A sharding for each array. Those without an axis that `fsdp` divides, and those of
      fewer than LEAST_SHARDED elements, are copied to every device.
    """
    size = mesh.shape["fsdp"]

    def one(array: Any) -> NamedSharding:
        axes = [i for i, length in enumerate(array.shape) if length % size == 0]
        if size == 1 or not axes or math.prod(array.shape) < LEAST_SHARDED:
            return replicated(mesh)
        # The last of several equals: the channels that a convolution makes.
        longest = max(axes, key=lambda i: (array.shape[i], i))
        return NamedSharding(mesh, PartitionSpec(*[None] * longest, "fsdp"))

    return jax.tree.map(one, state)


def own_rows(mesh: Mesh, batch: int) -> np.ndarray:
    """Returns which rows of a global batch this process's devices hold, in order.

    On a torus the mesh may visit a host's devices far apart: they need not be
    neighbours in the batch.
    """
    index = jax.process_index()
    return rows_of(mesh, batch)[index]


def rows_of(mesh: Mesh, batch: int) -> dict[int, np.ndarray]:
    """Returns the rows of a global batch that each process's devices hold, in order."""
    rows: dict[int, list[np.ndarray]] = {}
    places = batch_sharding(mesh).devices_indices_map((batch,))
    for device, (part,) in places.items():
        rows.setdefault(device.process_index, []).append(np.arange(batch)[part])
    return {index: np.sort(np.concatenate(parts)) for index, parts in rows.items()}


def to_global(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, Any]:
    """Makes global arrays of the rows that each process has: see `own_rows`.

    The copy to the devices goes on while the host continues.
    """
    sharding = batch_sharding(mesh)
    # This is what is meant to cross, whatever guard stands around it.
    with jax.transfer_guard_host_to_device("allow"):
        return {
            name: jax.make_array_from_process_local_data(sharding, array)
            for name, array in batch.items()
        }


def put_whole(value: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """Puts an array that every process holds whole where a sharding says."""
    return jax.make_array_from_callback(
        value.shape, sharding, lambda index: value[index]
    )
