"""AutoAugment and RandAugment, by a kernel on TPUs, and the check of that kernel.

Both policies are tables of operations, of which each example draws a row.
"""

import functools
from collections.abc import Collection, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from ml_collections import ConfigDict

from vt_flax.data.augment.operations import (
    BLENDS,
    GEOMETRIC,
    Operation,
    apply_layers,
    operation,
    stack,
)
from vt_flax.errors import UserError, first_line

# The policy found on ImageNet (Cubuk et al., "AutoAugment", 2018, appendix): 25
# sub-policies, each of two operations with probability and magnitude, 0 to 9. None has
# two geometric operations.
IMAGENET_POLICY = (
    (("Posterize", 0.4, 8), ("Rotate", 0.6, 9)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 5)),
    (("Equalize", 0.8, 8), ("Equalize", 0.6, 3)),
    (("Posterize", 0.6, 7), ("Posterize", 0.6, 6)),
    (("Equalize", 0.4, 7), ("Solarize", 0.2, 4)),
    (("Equalize", 0.4, 4), ("Rotate", 0.8, 8)),
    (("Solarize", 0.6, 3), ("Equalize", 0.6, 7)),
    (("Posterize", 0.8, 5), ("Equalize", 1.0, 2)),
    (("Rotate", 0.2, 3), ("Solarize", 0.6, 8)),
    (("Equalize", 0.6, 8), ("Posterize", 0.4, 6)),
    (("Rotate", 0.8, 8), ("Color", 0.4, 0)),
    (("Rotate", 0.4, 9), ("Equalize", 0.6, 2)),
    (("Equalize", 0.0, 7), ("Equalize", 0.8, 8)),
    (("Invert", 0.6, 4), ("Equalize", 1.0, 8)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Rotate", 0.8, 8), ("Color", 1.0, 2)),
    (("Color", 0.8, 8), ("Solarize", 0.8, 7)),
    (("Sharpness", 0.4, 7), ("Invert", 0.6, 8)),
    (("ShearX", 0.6, 5), ("Equalize", 1.0, 9)),
    (("Color", 0.4, 0), ("Equalize", 0.6, 3)),
    (("Equalize", 0.4, 7), ("Solarize", 0.2, 4)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 5)),
    (("Invert", 0.6, 4), ("Equalize", 1.0, 8)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Equalize", 0.8, 8), ("Equalize", 0.6, 3)),
)

# The operations of RandAugment (Cubuk et al., 2019), drawn with equal probability.
RANDAUGMENT = (
    *("Identity", "AutoContrast", "Equalize", "Rotate", "Solarize", "Color"),
    *("Posterize", "Contrast", "Brightness", "Sharpness"),
    *("ShearX", "ShearY", "TranslateX", "TranslateY"),
)
# Largest magnitudes.
AUTOAUGMENT_MAX, RANDAUGMENT_MAX = 9, 10

# Largest side in pixels: the kernel holds nine images of 32-bit words in the 16 MiB of
# vector memory that it may use.
LARGEST_IN_KERNEL = 640
# Images that `check_device` compares. With this seed they draw every operation of both
# policies, in both directions.
CHECKED_IMAGES, CHECKED_SEED = 64, 2


class Draw(NamedTuple):
    """Random draws of each example and layer, (batch, layers), int32 and bool.

    Attributes:
      row: AutoAugment's sub-policy, alike in both layers, or RandAugment's operation.
      applied: whether the operation is applied.
      negative: whether a geometric operation goes in the other direction.
    """

    row: jax.Array
    applied: jax.Array
    negative: jax.Array


def value_of(name: str, share: float, side: int) -> float:
    """Returns the argument of an operation at a share, 0 to 1, of its range.

    The ranges are AutoAugment's (Table 6). Where the paper leaves a direction open:
    Posterize and Solarize grow stronger with the magnitude, as in the authors' code
    for CIFAR; enhancements go from 0.1 to 1.9 as printed, with little effect in the
    middle; shears, translations and rotations start at 0 and go in either direction.
    Public implementations differ in each of these.

    Args:
      name: an operation.
      share: share of the range; magnitude m of 0 to 9 is m / 9 [choice: timm and the
        authors' code for CIFAR divide by 10].
      side: side of the images in pixels, for translations: 150 of the 331 pixels of the
        images in the policy search.
    """
    if name.startswith("Shear"):
        return 0.3 * share
    if name.startswith("Translate"):
        return 150 / 331 * side * share
    if name == "Rotate":
        return 30 * share
    if name == "Posterize":
        return 8 - round(4 * share)
    if name == "Solarize":
        return 256 * (1 - share)
    return 0.1 + 1.8 * share if name in BLENDS else 0.0


def apply_policy(
    images: jax.Array,
    config: ConfigDict,
    keys: jax.Array,
    sharding: NamedSharding | None = None,
) -> jax.Array:
    """Applies the configured policy, as a kernel on TPUs.

    Args:
      images: uint8, (batch, H, W, 3).
      config: the section `data`: `augment` and, for RandAugment, `randaugment_layers`
        and `randaugment_magnitude`; `augment_kernel`.
      keys: (batch,) keys.
      sharding: of the batch; None for a single device.

    Returns:
      uint8, (batch, H, W, 3).
    """
    if config.augment == "none":
        return images
    layers, names = draw_layers(config, keys, images.shape[1:3])
    apply = functools.partial(apply_layers, names=names)
    if takes_kernel(config, images.shape[1:3], sharding):
        # Imported here, because only TPUs need it.
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
    return apply(images, layers)


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

    keys = jax.random.split(jax.random.key(CHECKED_SEED), CHECKED_IMAGES)
    layers, names = draw_layers(config, keys, size)
    # Not all levels, so that AutoContrast changes something.
    shape = (CHECKED_IMAGES, *size, 3)
    images = np.random.default_rng(0).integers(20, 200, shape, np.uint8)
    device = min(sharding.addressable_devices, key=lambda device: device.id)
    arguments = jax.device_put((images, layers), device)
    advice = "set data.augment_kernel=False, and report it"
    try:
        result = np.asarray(jax.jit(apply_in_kernel)(*arguments), np.int32)
    except Exception as error:
        raise UserError(
            f"data.augment: {device.device_kind} does not run the kernel: "
            f"{first_line(error)[:200]}: {advice}"
        ) from error
    reference = jax.jit(functools.partial(apply_layers, names=names))(*arguments)
    gaps = np.abs(result - np.asarray(reference, np.int32))
    # A rounding difference may be amplified by the next operation: count the pixels.
    if (gaps > 1).mean((1, 2, 3)).max() > 1e-3:
        raise UserError(
            f"data.augment: on {device.device_kind} the kernel gives other images than "
            f"the reference, by up to {gaps.max()} levels: {advice}"
        )
    return []


def draw_layers(
    config: ConfigDict, keys: jax.Array, size: tuple[int, int]
) -> tuple[list[Operation], list[Collection[str]]]:
    """Draws the operations of each example.

    Args:
      config: the section `data`.
      keys: (batch,) keys.
      size: height and width of the images in pixels.

    Returns:
      Parameters (batch,) of each layer, and the names of its possible operations.
    """
    if config.augment == "randaugment":
        layers = config.randaugment_layers
        table = randaugment_table(config.randaugment_magnitude, size)
        draw = draw_randaugment(keys, layers)
        return _operations((table,) * layers, draw), [set(RANDAUGMENT)] * layers
    first, second = _operations(autoaugment_table(size), draw_autoaugment(keys))
    # One of the two is not geometric, so that both take one affine map.
    still = jnp.asarray(operation("Identity").matrix)
    moves = (first.matrix != still).any(-1, keepdims=True)
    matrix = jnp.where(moves, first.matrix, second.matrix)
    layers = [
        first._replace(matrix=matrix),
        second._replace(matrix=jnp.broadcast_to(still, matrix.shape)),
    ]
    names = [{pair[i][0] for pair in IMAGENET_POLICY} for i in range(2)]
    return layers, [names[0] | {*GEOMETRIC}, names[1] - {*GEOMETRIC}]


def draw_autoaugment(keys: jax.Array) -> Draw:
    """Draws a sub-policy for each key, and which of its two operations are applied."""
    probabilities = jnp.asarray([[p for _, p, _ in pair] for pair in IMAGENET_POLICY])

    def one(key: jax.Array) -> Draw:
        row_key, applied_key, sign_key = jax.random.split(key, 3)
        row = jax.random.randint(row_key, (), 0, len(IMAGENET_POLICY))
        return Draw(
            row=jnp.stack([row, row]),
            applied=jax.random.uniform(applied_key, (2,)) < probabilities[row],
            negative=jax.random.bernoulli(sign_key, shape=(2,)),
        )

    return jax.vmap(one)(keys)


def draw_randaugment(keys: jax.Array, layers: int) -> Draw:
    """Draws an operation for each key and layer."""

    def one(key: jax.Array) -> Draw:
        row_key, sign_key = jax.random.split(key)
        return Draw(
            row=jax.random.randint(row_key, (layers,), 0, len(RANDAUGMENT)),
            applied=jnp.ones(layers, bool),
            negative=jax.random.bernoulli(sign_key, shape=(layers,)),
        )

    return jax.vmap(one)(keys)


@functools.cache
def autoaugment_table(size: tuple[int, int]) -> tuple[Operation, Operation]:
    """Returns the parameters of both layers, (sub-policies, 2 signs) each."""
    return tuple(
        _table([(n, m / AUTOAUGMENT_MAX) for n, _, m in layer], size)
        for layer in zip(*IMAGENET_POLICY, strict=True)
    )


@functools.cache
def randaugment_table(magnitude: float, size: tuple[int, int]) -> Operation:
    """Returns the parameters of the operations, (operations, 2 signs)."""
    return _table([(name, magnitude / RANDAUGMENT_MAX) for name in RANDAUGMENT], size)


def _table(entries: Sequence[tuple[str, float]], size: tuple[int, int]) -> Operation:
    rows = []
    for name, share in entries:
        value = value_of(name, share, size[1] if name == "TranslateX" else size[0])
        signs = (1, -1) if name in GEOMETRIC else (1, 1)
        rows.append(stack([operation(name, sign * value, size) for sign in signs]))
    return stack(rows)


def _operations(tables: Sequence[Operation], draw: Draw) -> list[Operation]:
    """Returns the drawn parameters, (batch,), of each layer."""
    identity = operation("Identity")
    layers = []
    for i, table in enumerate(tables):
        row, applied = draw.row[:, i], draw.applied[:, i]
        sign = draw.negative[:, i].astype(jnp.int32)

        def pick(values, same, row=row, applied=applied, sign=sign):
            drawn = jnp.asarray(values)[row, sign]
            return jnp.where(applied.reshape(-1, *[1] * same.ndim), drawn, same)

        layers.append(jax.tree.map(pick, table, identity))
    return layers
