"""Image operations as a TPU kernel where it serves, and its check on the device."""

import functools
from collections.abc import Callable, Collection, Sequence

import jax
import numpy as np
from jax.sharding import NamedSharding
from ml_collections import ConfigDict

from vt_flax.data.augment.operations import (
    OPERATIONS,
    Operation,
    apply_layers,
    operation,
    stack,
)
from vt_flax.errors import UserError, first_line

# Pixels of a side. In a chip's vector memory, of which it may take 16 MiB, the kernel
# holds an image of 32-bit words nine times: read, written (two each), turned and moved.
# Larger images take the reference, which TPUs are slow at.
LARGEST_IN_KERNEL = 640

# Operations to compare: all, in both directions where they have one.
CHECKED = (
    *(("ShearX", 0.26), ("ShearX", -0.26), ("ShearY", 0.26), ("ShearY", -0.26)),
    *(("TranslateX", 9.0), ("TranslateX", -7.5), ("TranslateY", 8.0)),
    *(("TranslateY", -9.5), ("Rotate", 26.1), ("Rotate", -29.9)),
    *(("Brightness", 0.3), ("Brightness", 1.7), ("Contrast", 0.3), ("Contrast", 1.7)),
    *(("Color", 0.3), ("Color", 1.7), ("Sharpness", 0.3), ("Sharpness", 1.7)),
    *(("AutoContrast", 0.0), ("Equalize", 0.0), ("Invert", 0.0), ("Posterize", 4.0)),
    *(("Solarize", 113.0), ("Identity", 0.0)),
)


def apply_operations(
    images: jax.Array,
    layers: Sequence[Operation],
    names: Sequence[Collection[str]],
    config: ConfigDict,
    sharding: NamedSharding | None = None,
) -> jax.Array:
    """Applies each image's operations, as a kernel on TPUs.

    Args:
      images: uint8, (batch, H, W, 3).
      layers: parameters (batch,) of each layer.
      names: the operations that there may be in each.
      config: the section `data`.
      sharding: of the batch; None for a single device.

    Returns:
      uint8, (batch, H, W, 3).
    """
    apply = functools.partial(apply_layers, names=names)
    if takes_kernel(config, images.shape[1:3], sharding):
        # Imported here, for only TPUs need it.
        from vt_flax.data.augment.kernel import apply_in_kernel as apply
    if sharding is not None:
        # Examples are independent, and the compiler cannot shard the kernel.
        apply = jax.shard_map(
            apply,
            mesh=sharding.mesh,
            in_specs=sharding.spec,
            out_specs=sharding.spec,
            check_vma=False,
        )
    return apply(images, list(layers))


def takes_kernel(
    config: ConfigDict, size: tuple[int, int], sharding: NamedSharding | None
) -> bool:
    """Returns whether the operations run as a TPU kernel.

    Args:
      config: the section `data`.
      size: height and width of the images in pixels.
      sharding: of the batch; None for JAX's default device.
    """
    fits = max(size) <= LARGEST_IN_KERNEL
    return config.augment_kernel and fits and _on_tpus(sharding)


def _on_tpus(sharding: NamedSharding | None) -> bool:
    if sharding is None:
        return jax.default_backend() == "tpu"
    return next(iter(sharding.device_set)).platform == "tpu"


def check_device(config: ConfigDict, sharding: NamedSharding) -> list[str]:
    """Compares the kernel with the reference on this process's first device, if used.

    On noise of the configured size: what a run learns must not depend on the chip.

    Args:
      config: the section `data`.
      sharding: of training batches.

    Returns:
      Notes on how the operations will run.

    Raises:
      UserError: if the kernel does not run, or a level differs by more than rounding.
    """
    size = (config.image_size,) * 2
    if config.augment == "none" or not _on_tpus(sharding):
        return []
    if not takes_kernel(config, size, sharding):
        reason = (
            f"images of more than {LARGEST_IN_KERNEL} pixels"
            if config.augment_kernel
            else "data.augment_kernel is False"
        )
        return [f"data.augment runs without its kernel ({reason}): slow on TPUs"]
    from vt_flax.data.augment.kernel import apply_in_kernel

    device = min(sharding.addressable_devices, key=lambda device: device.id)
    _compare(apply_in_kernel, size, device)
    return []


def _compare(kernel: Callable, size: tuple[int, int], device: jax.Device) -> None:
    rows = [operation(name, value, size) for name, value in CHECKED]
    # Two layers: what the first leaves behind in its memory is not to reach the second.
    layers = [stack(rows), stack(rows[::-1])]
    # Not all levels, so that there is something to stretch.
    images = np.random.default_rng(0).integers(20, 200, (len(rows), *size, 3), np.uint8)
    arguments = jax.device_put((images, layers), device)
    reference = functools.partial(apply_layers, names=[OPERATIONS] * 2)
    advice = "set data.augment_kernel=False, and report it"
    try:
        found = np.asarray(jax.jit(kernel)(*arguments), np.int32)
    except Exception as error:
        reason = first_line(error)[:200]
        raise UserError(
            f"data.augment: {device.device_kind} does not run the kernel: {reason}: "
            f"{advice}"
        ) from error
    gaps = np.abs(found - np.asarray(jax.jit(reference)(*arguments), np.int32))
    # A level that is rounded otherwise may be moved by what follows: count the pixels.
    far = (gaps > 1).mean((1, 2, 3))
    if far.max() > 1e-3:
        worst = int(far.argmax())
        names = " and ".join(cases[worst][0] for cases in (CHECKED, CHECKED[::-1]))
        raise UserError(
            f"data.augment: on {device.device_kind} the kernel gives other images than "
            f"the reference, by up to {gaps[worst].max()} levels after {names}: "
            f"{advice}"
        )
