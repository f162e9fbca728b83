"""Pillow's image operations on the device, to the level, one for each example.

Under `vmap` a switch would compute every operation for every example. Instead an
operation is a row of parameters for two programs that all examples go through:
`pointwise` (arithmetic, one blend, one lookup table) and `affine` (one resampling).
Parameters that an operation does not use are those of the identity.

This is what CPUs and GPUs run, and the reference for the TPU kernel (`kernel`).
"""

import functools
from collections.abc import Collection, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Gray level around moved images, as in AutoAugment's published code.
FILL = 128
# Pillow computes coordinates in units of 1 / 65536 pixel.
FIXED = 1 << 16

GEOMETRIC = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
# Operations of ImageEnhance, in the order of `Operation.degenerate`.
BLENDS = ("Brightness", "Contrast", "Color", "Sharpness")
OPERATIONS = (
    *GEOMETRIC,
    *BLENDS,
    *("AutoContrast", "Equalize", "Invert", "Posterize", "Solarize"),
    "Identity",
)


class Operation(NamedTuple):
    """Parameters of operations, scalars or arrays (batch,); `matrix` (batch, 6).

    Attributes:
      matrix: affine map from result to image, in units of 1 / FIXED pixel.
      threshold: levels from here on are inverted.
      mask: bits of a level that are kept.
      stretch: whether each channel's levels are stretched to 0 to 255.
      equalize: whether each channel's histogram is equalized.
      factor: weight of the image in the blend; 1 is the image.
      degenerate: what it is blended with, an index of BLENDS.
    """

    matrix: jax.Array
    threshold: jax.Array
    mask: jax.Array
    stretch: jax.Array
    equalize: jax.Array
    factor: jax.Array
    degenerate: jax.Array


def operation(name: str, value: float = 0.0, size: tuple[int, int] = (1, 1)):
    """Returns the parameters of an operation, as NumPy scalars.

    Args:
      name: one of OPERATIONS.
      value: Pillow's argument: shear in pixels a pixel, translation in pixels, angle in
        degrees, factor of an enhancement, threshold of Solarize, bits of Posterize.
      size: height and width of the images in pixels.

    Raises:
      ValueError: for another name.
    """
    changes = {}
    if name in GEOMETRIC:
        changes["matrix"] = _fixed(_matrix(name, value, size))
    elif name in BLENDS:
        changes["factor"] = np.float32(value)
        changes["degenerate"] = np.int32(BLENDS.index(name))
    elif name == "Posterize":
        changes["mask"] = np.int32(256 - (1 << (8 - round(value))))
    elif name in ("Solarize", "Invert"):
        changes["threshold"] = np.int32(np.ceil(value))
    elif name == "AutoContrast":
        changes["stretch"] = np.bool_(True)
    elif name == "Equalize":
        changes["equalize"] = np.bool_(True)
    elif name != "Identity":
        raise ValueError(f"operation {name!r} is not known")
    identity = Operation(
        matrix=_fixed([1, 0, 0, 0, 1, 0]),
        threshold=np.int32(256),
        mask=np.int32(255),
        stretch=np.bool_(False),
        equalize=np.bool_(False),
        factor=np.float32(1),
        degenerate=np.int32(0),
    )
    return identity._replace(**changes)


def _matrix(name: str, value: float, size: tuple[int, int]) -> list[float]:
    """Returns (a, b, c, d, e, f): the pixel at (x, y) comes from (ax+by+c, dx+ey+f)."""
    if name == "ShearX":
        return [1, value, 0, 0, 1, 0]
    if name == "ShearY":
        return [1, 0, 0, value, 1, 0]
    if name == "TranslateX":
        return [1, 0, value, 0, 1, 0]
    if name == "TranslateY":
        return [1, 0, 0, 0, 1, value]
    angle = -np.radians(value)
    cos, sin = np.cos(angle), np.sin(angle)
    y, x = size[0] / 2, size[1] / 2
    return [cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y]


def _fixed(matrix: list[float]) -> np.ndarray:
    """Rounds a matrix as Pillow does, from pixels' corners to their centers."""
    a, b, c, d, e, f = matrix
    moved = np.asarray([a, b, c + (a + b) / 2, d, e, f + (d + e) / 2], np.float64)
    return np.floor(moved * FIXED + 0.5).astype(np.int32)


def stack(rows: Sequence[Operation]) -> Operation:
    """Stacks the parameters of operations along a new first axis."""
    return jax.tree.map(lambda *values: np.stack(values), *rows)


def apply_layers(
    images: jax.Array,
    layers: Sequence[Operation],
    names: Sequence[Collection[str]],
) -> jax.Array:
    """Applies to each image its operations, one layer after the other.

    Args:
      images: uint8, (batch, H, W, 3).
      layers: parameters (batch,) of each layer.
      names: possible operations of each layer; others are not computed.

    Returns:
      uint8, (batch, H, W, 3).
    """
    # Channels apart: accelerators pad the last axis, and three become 128.
    images = images.transpose(0, 3, 1, 2)
    for layer, present in zip(layers, names, strict=True):
        images = pointwise(images, layer, present)
        if not set(GEOMETRIC).isdisjoint(present):
            images = affine(images, layer.matrix)
    return images.transpose(0, 2, 3, 1)


def affine(images: jax.Array, matrix: jax.Array) -> jax.Array:
    """Maps each image by its matrix: nearest pixels, and gray outside the image.

    Args:
      images: uint8, (batch, 3, H, W).
      matrix: int32, (batch, 6); see `Operation`.

    Returns:
      uint8, (batch, 3, H, W): `Image.transform` with `Image.Resampling.NEAREST`.
    """
    height, width = images.shape[2:]
    y = jnp.arange(height, dtype=jnp.int32)[:, None]
    x = jnp.arange(width, dtype=jnp.int32)[None, :]
    coefficients = [matrix[:, i, None, None] for i in range(6)]
    left, top, inside = origin(coefficients, x, y, (height, width))
    index = jnp.where(inside, top * width + left, 0).reshape(len(images), 1, -1)
    pixels = images.reshape(*images.shape[:2], -1)
    moved = jnp.take_along_axis(pixels, index, axis=2).reshape(images.shape)
    return jnp.where(inside[:, None], moved, FILL).astype(jnp.uint8)


def origin(
    matrix: Sequence[jax.Array], x: jax.Array, y: jax.Array, size: tuple[int, int]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the source column and row of pixels, and whether they are inside.

    Args:
      matrix: six coefficients; see `Operation`.
      x: columns of the result, int32.
      y: rows of the result, int32.
      size: height and width of the image.
    """
    a, b, c, d, e, f = matrix
    height, width = size
    left, top = (a * x + b * y + c) >> 16, (d * x + e * y + f) >> 16
    inside = (left >= 0) & (left < width) & (top >= 0) & (top < height)
    return left, top, inside


def pointwise(
    images: jax.Array, operations: Operation, names: Collection[str] = OPERATIONS
) -> jax.Array:
    """Applies all operations that are not geometric.

    Args:
      images: uint8, (batch, 3, H, W).
      operations: parameters (batch,).
      names: possible operations; others are not computed.

    Returns:
      uint8, (batch, 3, H, W): what ImageOps and ImageEnhance return.
    """

    def each(value: jax.Array) -> jax.Array:
        return value[:, None, None, None]

    levels = images.astype(jnp.int32)
    # Each of these is the identity in all operations but one.
    result = levels
    if "Equalize" in names:
        equalized = equalize(images).astype(jnp.int32)
        result = jnp.where(each(operations.equalize), equalized, result)
    if "AutoContrast" in names:
        low, high = levels.min((2, 3), keepdims=True), levels.max((2, 3), keepdims=True)
        stretched = (levels - low) * 255 // jnp.maximum(high - low, 1)
        stretches = each(operations.stretch) & (high > low)
        result = jnp.where(stretches, stretched, result)
    result = jnp.where(result >= each(operations.threshold), 255 - result, result)
    result = result & each(operations.mask)

    blends = [i for i, name in enumerate(BLENDS) if name in names]
    if not blends:
        return result.astype(jnp.uint8)
    starts = [_degenerate(BLENDS[i], images) for i in blends]
    start = jnp.select(
        [each(operations.degenerate == i) for i in blends],
        [jnp.broadcast_to(start, images.shape) for start in starts],
    )
    factor = each(operations.factor)
    blend = start + factor * (levels - start).astype(jnp.float32)
    blend = jnp.clip(jnp.floor(blend), 0, 255).astype(jnp.int32)
    return jnp.where(factor == 1, result, blend).astype(jnp.uint8)


def _degenerate(name: str, images: jax.Array) -> jax.Array:
    """Returns the image that ImageEnhance blends with, int32, broadcastable."""
    levels = images.astype(jnp.int32)
    if name == "Sharpness":
        return _smooth(images)
    if name == "Brightness":
        return jnp.zeros_like(levels[:, :1])
    gray = luma(*(levels[:, i : i + 1] for i in range(3)))
    if name == "Color":
        return gray
    # The mean, rounded half up in integers.
    count = levels.shape[2] * levels.shape[3]
    return (2 * gray.sum((1, 2, 3), keepdims=True) + count) // (2 * count)


def luma(red: jax.Array, green: jax.Array, blue: jax.Array) -> jax.Array:
    """Returns Pillow's gray level (mode L), int32."""
    return (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16


def _smooth(images: jax.Array) -> jax.Array:
    """Applies Pillow's ImageFilter.SMOOTH: a mean with weight 5 in the center."""
    height, width = images.shape[2:]
    levels = images.astype(jnp.int32)
    padded = jnp.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    total = sum(
        padded[:, :, top : top + height, left : left + width].astype(jnp.int32)
        for top in range(3)
        for left in range(3)
    )
    # (total + 4 middle) / 13, rounded; 13 is odd, so there are no ties.
    smooth = (2 * (total + 4 * levels) + 13) // 26
    y, x = jnp.arange(height)[:, None], jnp.arange(width)
    inner = (y > 0) & (y < height - 1) & (x > 0) & (x < width - 1)
    return jnp.where(inner, smooth, levels)


def equalize(images: jax.Array) -> jax.Array:
    """Applies ImageOps.equalize to uint8 images, (batch, 3, H, W)."""
    counts = histogram(images)
    before = jnp.cumsum(counts, -1) - counts
    # The number of pixels below the brightest level, in 255 steps.
    step = jnp.where(counts > 0, before, 0).max(-1, keepdims=True) // 255
    table = (before + step // 2) // jnp.maximum(step, 1)
    table = jnp.where(step > 0, jnp.minimum(table, 255), jnp.arange(256))
    return look_up(table, images)


def histogram(images: jax.Array) -> jax.Array:
    """Counts levels: uint8 (batch, channels, H, W) to int32 (batch, channels, 256).

    By a scatter on the CPU, and elsewhere by a product of one-hot high and low halves
    of the levels, since accelerators scatter slowly.
    """

    def scatter(images: jax.Array) -> jax.Array:
        zeros = jnp.zeros((*images.shape[:2], 256), jnp.int32)
        b = jnp.arange(images.shape[0])[:, None, None, None]
        c = jnp.arange(images.shape[1])[:, None, None]
        return zeros.at[b, c, images].add(1)

    return jax.lax.platform_dependent(images, cpu=scatter, default=histogram_by_product)


def histogram_by_product(images: jax.Array) -> jax.Array:
    """Returns `histogram(images)` without a scatter."""
    high, low = _halves(images)
    # Counts are integers below 2^24, exact in float32.
    counts = jnp.einsum(
        "bcyxh,bcyxl->bchl", high, low, preferred_element_type=jnp.float32
    )
    return counts.reshape(*images.shape[:2], 256).astype(jnp.int32)


def look_up(table: jax.Array, images: jax.Array) -> jax.Array:
    """Maps uint8 levels (batch, channels, H, W) by tables (batch, channels, 256)."""

    def gather(table: jax.Array, images: jax.Array) -> jax.Array:
        index = images.reshape(*images.shape[:2], -1).astype(jnp.int32)
        levels = jnp.take_along_axis(table, index, axis=-1)
        return levels.reshape(images.shape).astype(jnp.uint8)

    return jax.lax.platform_dependent(
        table, images, cpu=gather, default=look_up_by_product
    )


def look_up_by_product(table: jax.Array, images: jax.Array) -> jax.Array:
    """Returns `look_up(table, images)` without a gather."""
    high, low = _halves(images)
    # Levels are exact in bfloat16, and each sum has one term that is not zero.
    rows = table.reshape(*table.shape[:2], 16, 16).astype(jnp.bfloat16)
    levels = jnp.einsum("bcyxh,bchl->bcyxl", high, rows)
    return (levels * low).sum(-1).astype(jnp.uint8)


def _halves(images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns one-hot high and low four bits of levels, bfloat16, (..., 16)."""
    one_hot = functools.partial(jax.nn.one_hot, num_classes=16, dtype=jnp.bfloat16)
    return one_hot(images >> 4), one_hot(images & 15)
