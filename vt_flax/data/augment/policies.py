"""AutoAugment and RandAugment: which operations, how often, how strong.

Both are tables of operations, from which a draw takes a row for each example.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from ml_collections import ConfigDict

from vt_flax.data.augment.formulations import apply_operations
from vt_flax.data.augment.operations import GEOMETRIC, Operation, operation, stack

# The policy found on ImageNet (Cubuk et al., "AutoAugment", 2018, appendix): 25
# sub-policies, each of two operations with probability and magnitude, 0 to 9. None has
# two geometric operations, so that each pair takes one resampling.
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

# Cubuk et al., "RandAugment", 2019: these, each as likely.
RANDAUGMENT = (
    *("Identity", "AutoContrast", "Equalize", "Rotate", "Solarize", "Color"),
    *("Posterize", "Contrast", "Brightness", "Sharpness"),
    *("ShearX", "ShearY", "TranslateX", "TranslateY"),
)
# RandAugment's scale; AutoAugment's ends at 9.
STRONGEST = 10


class Draw(NamedTuple):
    """What was drawn for each example and layer, (batch, layers), int32 and bool.

    Attributes:
      row: of the policy: AutoAugment's sub-policy, alike in its two layers, or
        RandAugment's operation.
      applied: whether the operation is applied at all.
      negative: whether a geometric operation goes the other way.
    """

    row: jax.Array
    applied: jax.Array
    negative: jax.Array


def value_of(name: str, share: float, side: int) -> float:
    """Returns what an operation takes at a share, 0 to 1, of its range.

    The ranges are AutoAugment's (Table 6). Where the paper leaves a direction open:
    Posterize and Solarize grow stronger with the magnitude, as in the authors' code
    for CIFAR; enhancements go from 0.1 to 1.9 as the paper prints it, and so do little
    in the middle; shears, translations and rotations start at 0 and go either way.
    Public implementations differ in each of these.

    Args:
      name: an operation.
      share: of the range; magnitude m of 0 to 9 is m / 9 [choice: timm and the
        authors' code for CIFAR divide by 10].
      side: of the images in pixels, for translations: 150 of the 331 pixels that the
        policy was searched with.
    """
    ranges = {
        "ShearX": 0.3 * share,
        "ShearY": 0.3 * share,
        "TranslateX": 150 / 331 * side * share,
        "TranslateY": 150 / 331 * side * share,
        "Rotate": 30 * share,
        "Posterize": 8 - round(4 * share),
        "Solarize": 256 * (1 - share),
        "Contrast": 0.1 + 1.8 * share,
        "Color": 0.1 + 1.8 * share,
        "Brightness": 0.1 + 1.8 * share,
        "Sharpness": 0.1 + 1.8 * share,
    }
    return ranges.get(name, 0.0)


def apply_policy(
    images: jax.Array,
    config: ConfigDict,
    keys: jax.Array,
    sharding: NamedSharding | None = None,
) -> jax.Array:
    """Applies the configured policy, an own draw for each example.

    Args:
      images: uint8, (batch, H, W, 3).
      config: the section `data`: `augment` and, for RandAugment, `randaugment_layers`
        and `randaugment_magnitude`; `augment_kernel`.
      keys: (batch,) keys.
      sharding: how the batch lies on the devices; None for a single one.

    Returns:
      uint8, (batch, H, W, 3).
    """
    if config.augment == "none":
        return images
    size = images.shape[1:3]
    if config.augment == "autoaugment":
        first, second = _operations(autoaugment_table(size), draw_autoaugment(keys))
        # One of the two is no geometric operation, and its matrix the identity.
        still = jnp.asarray(operation("Identity").matrix)
        moves = (first.matrix != still).any(-1, keepdims=True)
        matrix = jnp.where(moves, first.matrix, second.matrix)
        layers = [
            first._replace(matrix=matrix),
            second._replace(matrix=jnp.broadcast_to(still, matrix.shape)),
        ]
        names = [{pair[i][0] for pair in IMAGENET_POLICY} for i in range(2)]
        names[0].update(GEOMETRIC)
        names[1].difference_update(GEOMETRIC)
    else:
        table = randaugment_table(config.randaugment_magnitude, size)
        draw = draw_randaugment(keys, config.randaugment_layers)
        layers = _operations((table,) * config.randaugment_layers, draw)
        names = [set(RANDAUGMENT)] * config.randaugment_layers
    return apply_operations(images, layers, names, config, sharding)


def draw_autoaugment(keys: jax.Array) -> Draw:
    """Draws a sub-policy for each key, and what of it is applied; layers are two."""
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
    """Returns the parameters of the first and the second operations.

    Args:
      size: height and width of the images in pixels.

    Returns:
      Two tables, (sub-policies, 2 signs) of parameters.
    """
    return tuple(
        _table([(pair[i][0], pair[i][2] / 9) for pair in IMAGENET_POLICY], size)
        for i in range(2)
    )


@functools.cache
def randaugment_table(magnitude: float, size: tuple[int, int]) -> Operation:
    """Returns the parameters of the operations, (operations, 2 signs)."""
    return _table([(name, magnitude / STRONGEST) for name in RANDAUGMENT], size)


def _table(entries: list[tuple[str, float]], size: tuple[int, int]) -> Operation:
    rows = []
    for name, share in entries:
        side = size[1] if name == "TranslateX" else size[0]
        value = value_of(name, share, side)
        signs = (1, -1) if name in GEOMETRIC else (1, 1)
        rows.append(stack([operation(name, sign * value, size) for sign in signs]))
    return stack(rows)


def _operations(tables: tuple[Operation, ...], draw: Draw) -> list[Operation]:
    """Returns the parameters that were drawn, (batch,), for each layer."""
    identity = operation("Identity")
    layers = []
    for i, table in enumerate(tables):
        row, applied = draw.row[:, i], draw.applied[:, i]
        sign = draw.negative[:, i].astype(jnp.int32)

        def pick(values, same, row=row, applied=applied, sign=sign):
            found = jnp.asarray(values)[row, sign]
            return jnp.where(applied.reshape(-1, *[1] * same.ndim), found, same)

        layers.append(jax.tree.map(pick, table, identity))
    return layers
