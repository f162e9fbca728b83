"""Computations by Pallas kernels on TPUs, and by XLA elsewhere."""

from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec

Arrays = dict[str, jax.Array]

# Examples of one kernel step.
EXAMPLES = 8


def for_tpus() -> bool:
    """Returns whether the program that is being traced may be compiled for TPUs.

    The mesh that the caller has set decides (`jax.sharding.use_abstract_mesh`);
    without one, the platform that JAX runs on.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is not None:
        return device.device_kind.startswith("TPU")
    return jax.default_backend() == "tpu"


def kernels_apply() -> bool:
    """Returns whether the program that is being traced may contain kernels.

    Elsewhere layers are plain JAX, which every transformation takes: a kernel's
    gradient is a rule for reverse mode alone. Kernels are not written for
    `jax_enable_x64`.
    """
    # JAX 0.10 does not declare it.
    return for_tpus() and not jax.config.jax_enable_x64  # type: ignore[attr-defined]


class TooLarge(Exception):
    """A kernel needs more on-chip memory than the device has."""


def by_platform(
    kernel: Callable[..., Arrays],
    by_xla: Callable[..., Arrays],
    *arrays: Arrays,
    finish: Callable[[Arrays], Arrays] = lambda results: results,
) -> Arrays:
    """Calls `kernel` where the program is compiled for TPUs, else `by_xla`.

    The kernel works on the examples of each device alone, by the mesh that the caller
    has set (see `for_tpus`). A TPU with too little on-chip memory for the kernel uses
    XLA too: a v4 has 16 MiB, others have 64 and more. A kernel has no derivatives.

    Args:
      kernel: takes and returns arrays that lead with the batch, or are shared and lead
        with a 1; it may raise `TooLarge`.
      by_xla: the same for the whole batch.
      *arrays: their arguments; the first holds `x`, which leads with the batch.
      finish: maps the kernel's results of all devices to those of `by_xla`.
    """
    # First, for a program with a symbolic batch size has no kernels.
    if not kernels_apply():
        return by_xla(*arrays)
    mesh = jax.sharding.get_abstract_mesh()
    batch = arrays[0]["x"].shape[0]
    devices = 1 if mesh.empty else mesh.size
    examples = batch // devices
    whole_steps = 0 < examples <= EXAMPLES or examples % EXAMPLES == 0
    if batch % devices or not whole_steps:
        return by_xla(*arrays)
    if devices > 1:
        sharded, replicated = PartitionSpec(mesh.axis_names), PartitionSpec()
        kernel = jax.shard_map(
            kernel,
            in_specs=jax.tree.map(
                lambda array: sharded if array.shape[0] == batch else replicated, arrays
            ),
            out_specs=sharded,
            check_vma=False,
        )

    try:
        return jax.lax.platform_dependent(
            *arrays, tpu=lambda *arrays: finish(kernel(*arrays)), default=by_xla
        )
    except TooLarge:
        return by_xla(*arrays)
