"""What devices can compute at most, and the share of it that a training step uses."""

import functools
import time

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vt_flax.models.registry import DTYPES
from vt_flax.parallel.mesh import batch_sharding

# TFLOP/s of a JAX device by its `device_kind`, for 16-bit and for float32 operands, of
# dense products, as published. What JAX makes of float32 products by default counts: a
# pass of bfloat16 on TPUs, TF32 on these GPUs.
#   TPUs: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, "peak compute per chip".
#   GPUs: the data sheets of nvidia.com/en-us/data-center/{a100,l4,h100,h200}; those of
#   the last three print figures with sparsity, which are twice as high.
PUBLISHED = {
    "TPU v4": (275.0, 275.0),
    "TPU v5 lite": (197.0, 197.0),
    "TPU v5e": (197.0, 197.0),
    "TPU v5": (459.0, 459.0),
    "TPU v5p": (459.0, 459.0),
    "TPU v6 lite": (918.0, 918.0),
    "TPU v6e": (918.0, 918.0),
    "NVIDIA A100-SXM4-40GB": (312.0, 156.0),
    "NVIDIA A100-SXM4-80GB": (312.0, 156.0),
    "NVIDIA A100-PCIE-40GB": (312.0, 156.0),
    "NVIDIA A100 80GB PCIe": (312.0, 156.0),
    "NVIDIA L4": (121.0, 60.0),
    "NVIDIA H100 PCIe": (756.0, 378.0),
    "NVIDIA H100 80GB HBM3": (989.4, 494.7),
    "NVIDIA H200": (989.4, 494.7),
}

# A product of matrices that takes at least so long is measured.
SECONDS = 0.05
TRIES = 5


def published_peak(device_kind: str, dtype: str) -> float | None:
    """Returns a device's peak in FLOP/s; None where it is not in the table.

    Args:
      device_kind: as JAX has it.
      dtype: of the operands, by name.
    """
    if device_kind not in PUBLISHED:
        return None
    half, single = PUBLISHED[device_kind]
    return 1e12 * (single if dtype == "float32" else half)


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
    appendix B). Augmentation, normalisation and the optimizer are not.

    Args:
      macs: multiply-adds for an image, forward.
      images_per_second: over all devices.
      peak: of all devices, FLOP/s.
    """
    return 3 * 2 * macs * images_per_second / peak
