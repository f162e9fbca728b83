"""Computations that are kernels on TPUs and matrix products elsewhere."""

import contextlib
import contextvars
import os
from collections.abc import Callable, Iterator

import jax
from jax.sharding import PartitionSpec

Arrays = dict[str, jax.Array]

# A variable of the environment: with 0 all is products.
SWITCH = "VT_FLAX_KERNELS"
_allowed = contextvars.ContextVar("kernels_allowed", default=True)


def kernels_allowed() -> bool:
    """Returns whether kernels are to be run where they can be."""
    return _allowed.get() and os.environ.get(SWITCH) != "0"


def for_tpus() -> bool:
    """Returns whether what is traced now may be compiled for TPUs.

    The mesh that the caller has set decides (`jax.sharding.use_abstract_mesh`);
    without one, the platform that JAX runs on.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is not None:
        return device.device_kind.startswith("TPU")
    return jax.default_backend() == "tpu"


def kernels_apply() -> bool:
    """Returns whether what is traced now may hold kernels.

    Where it may not, layers are plain JAX, which every transformation takes: forward
    mode needs that, for a kernel's gradient is a rule for reverse mode alone. Kernels
    are not written for `jax_enable_x64`.
    """
    return kernels_allowed() and for_tpus() and not jax.config.jax_enable_x64


@contextlib.contextmanager
def without_kernels() -> Iterator[None]:
    """Within it what is traced has no kernels."""
    token = _allowed.set(False)
    try:
        yield
    finally:
        _allowed.reset(token)


class TooLarge(Exception):
    """A kernel needs more memory on the chip than this one has."""


def by_platform(
    kernel: Callable[..., Arrays],
    products: Callable[..., Arrays],
    *arrays: Arrays,
    fits: Callable[[int], bool],
    finish: Callable[[Arrays], Arrays] = lambda found: found,
) -> Arrays:
    """Calls `kernel` where the program is compiled for TPUs, else `products`.

    The kernel works on the examples of each device alone. The mesh is the one that the
    caller has set (`jax.sharding.use_abstract_mesh`); without one everything is on one
    device. What the kernel gives goes through `finish`.

    A TPU whose memory on the chip is too small for the kernel computes products too: a
    v4 has 16 MiB, where others have 64 and more.

    The result's derivatives are those of `products`: a kernel has none of its own.

    Args:
      kernel: takes and gives arrays that lead with the batch, or are shared and lead
        with a 1; it may raise `TooLarge`.
      products: the same for the whole batch.
      *arrays: what they take; the first holds `x`, which leads with the batch.
      fits: whether the kernel takes so many examples.
      finish: brings what the kernel gives, of all devices, to what `products` gives.
    """
    # First: a program for a batch of any size, which has none, cannot tell its size.
    if not kernels_apply():
        return products(*arrays)
    mesh = jax.sharding.get_abstract_mesh()
    batch = arrays[0]["x"].shape[0]
    devices = 1 if mesh.empty else mesh.size
    if batch % devices or not fits(batch // devices):
        return products(*arrays)
    if devices > 1:
        spread, shared = PartitionSpec(mesh.axis_names), PartitionSpec()
        kernel = jax.shard_map(
            kernel,
            in_specs=jax.tree.map(
                lambda array: spread if array.shape[0] == batch else shared, arrays
            ),
            out_specs=spread,
            check_vma=False,
        )

    @jax.custom_jvp
    def compute(*arrays: Arrays) -> Arrays:
        return jax.lax.platform_dependent(
            *arrays, tpu=lambda *arrays: finish(kernel(*arrays)), default=products
        )

    @compute.defjvp
    def _(primals: tuple, tangents: tuple) -> tuple[Arrays, Arrays]:
        return jax.jvp(products, primals, tangents)

    try:
        return compute(*arrays)
    except TooLarge:
        return products(*arrays)
