"""The mesh of devices, and how arrays lie on it."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vt_flax.errors import UserError

# Examples are spread over both axes. Parameters are copied to every device; `fsdp` has
# size 1 until they may be spread over it.
BATCH_AXES = ("data", "fsdp")


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a mesh of `data` x `fsdp` over all devices, or over some."""
    devices = list(devices if devices is not None else jax.devices())
    return Mesh(np.asarray(devices).reshape(len(devices), 1), BATCH_AXES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Examples spread over every device, along the first axis."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch(batch: int, mesh: Mesh, name: str) -> None:
    """Checks that a batch can be spread evenly.

    Raises:
      UserError: if it cannot.
    """
    if batch < 1 or batch % mesh.size:
        raise UserError(
            f"{name} {batch} is not a multiple of the {mesh.size} devices: change it"
        )


def to_global(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, Any]:
    """Makes global arrays of the rows that each process has read.

    The copy to the devices goes on while the host continues.
    """
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in batch.items()
    }
