"""What devices can compute at most, and the share of it that a training step uses."""

import functools
import time

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vt_flax.models.registry import DTYPES
from vt_flax.parallel.mesh import batch_sharding
from vt_flax.plan.topology import OF_KIND

# A product of matrices that takes at least so long is measured.
SECONDS = 0.05
TRIES = 5


def published_peak(device_kind: str, dtype: str) -> float | None:
    """Returns the peak FLOP/s of one JAX device; None where it is not in the table.

    Args:
      device_kind: its name in JAX.
      dtype: of the operands, by name.
    """
    chip = OF_KIND.get(device_kind)
    if chip is None:
        return None
    return chip.device.single if dtype == "float32" else chip.device.flops


def measured_peak(mesh: Mesh, dtype: str) -> float:
    """Returns the FLOP/s of the fastest matrix product, all devices at once.

    Each device multiplies two square matrices of its own, twice as large each time
    until a product takes SECONDS, and TRIES times each; the best counts.
    """
    best, side = 0.0, 256
    while True:
        make = functools.partial(jnp.ones, (mesh.size, side, side), DTYPES[dtype])
        a = jax.jit(make, out_shardings=batch_sharding(mesh))()
        multiply = jax.jit(functools.partial(jnp.einsum, "nij,njk->nik"))
        jax.block_until_ready(multiply(a, a))
        times = []
        for _ in range(TRIES):
            begin = time.perf_counter()
            jax.block_until_ready(multiply(a, a))
            times.append(time.perf_counter() - begin)
        best = max(best, 2 * mesh.size * side**3 / min(times))
        if min(times) > SECONDS:
            return best
        side *= 2


def utilisation(macs: int, images_per_second: float, peak: float) -> float:
    """Returns the share of a peak that training a network uses (MFU), from 0 to 1.

    Counted is what the network asks for, whatever is computed to get there: two
    operations a multiply-add, forward and, twice, backward (Chowdhery et al., 2022,
    appendix B). Augmentation, normalization and the optimizer are not.

    Args:
      macs: multiply-adds for an image, forward.
      images_per_second: over all devices.
      peak: of all devices, FLOP/s.
    """
    return 3 * 2 * macs * images_per_second / peak
