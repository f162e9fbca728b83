"""The image operations as one TPU kernel, which computes only what each image needs.

Outside a kernel every image of a batch goes through every operation, and gathers pixels
one by one: for AutoAugment that costs as much as a small network's step. Here each
image is copied to on-chip memory once, all layers of operations are applied there,
behind real branches, and it is written back.

A pixel is one 32-bit word, red in the lowest byte, so that moving it moves all colors.
Images are processed in blocks of rows. Arguments of these functions, unless said
otherwise: `image` is a reference to the padded image in memory, and `size` its height
and width without padding.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from vt_flax.data.augment.operations import (
    BLENDS,
    FILL,
    Operation,
    luma,
    operation,
    origin,
)
from vt_flax.experimental import pallas as pl
from vt_flax.experimental import pallas_tpu as pltpu

# Positions of an operation's integers.
MATRIX, THRESHOLD, MASK, STRETCH, EQUALIZE, DEGENERATE, NUMBERS = 0, 6, 7, 8, 9, 10, 11

# Lanes of a vector register, within which a gather works. Both sides of an image are
# padded to multiples of it, since it is also transposed.
LANES = 128
LANES_SHIFT = 7
# Rows of a block, few enough for the registers.
ROWS = 32
# Rows of a register.
REGISTER_ROWS = 8


def apply_in_kernel(
    images: jax.Array, layers: Sequence[Operation], interpret: bool = False
) -> jax.Array:
    """Applies to each image its operations, one layer after the other.

    Args:
      images: uint8, (batch, H, W, 3), on one device.
      layers: parameters (batch,) of each layer: first everything pointwise, then the
        affine map, whose first coefficient a has 1/2 < a <= 1.
      interpret: whether to run the kernel where there is no TPU, slowly.

    Returns:
      uint8, (batch, H, W, 3): the result of `operations.apply_layers`.
    """
    batch, height, width = images.shape[:3]
    rows, columns = (pl.cdiv(side, LANES) * LANES for side in (height, width))
    words = _pack([images[..., i].astype(jnp.int32) for i in range(3)])
    numbers = jnp.concatenate([_numbers(layer) for layer in layers], axis=1)
    factors = jnp.stack([layer.factor for layer in layers], axis=1)

    def in_memory(shape, space):
        return pl.BlockSpec((1, *shape), lambda i: (i, 0, 0), memory_space=space)

    image = in_memory((height, width), pltpu.VMEM)
    words = pl.pallas_call(
        functools.partial(_kernel, (height, width), len(layers)),
        out_shape=jax.ShapeDtypeStruct(words.shape, jnp.int32),
        grid=(batch,),
        in_specs=[
            in_memory((1, numbers.shape[1]), pltpu.SMEM),
            in_memory((1, factors.shape[1]), pltpu.SMEM),
            image,
        ],
        out_specs=image,
        scratch_shapes=[
            pltpu.VMEM((rows, columns), jnp.int32),
            pltpu.VMEM((8, 256), jnp.int32),
            pltpu.VMEM((columns, rows), jnp.int32),
            pltpu.VMEM((columns, rows), jnp.int32),
            pltpu.VMEM((2, rows, columns), jnp.int32),
        ],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
        # The exact memory traffic, and an upper bound of the arithmetic: every layer
        # equalizes (the product behind the histogram) and moves.
        cost_estimate=pl.CostEstimate(
            flops=len(layers) * (3 * 2 * 16 * 16 + 200) * words.size,
            bytes_accessed=2 * words.size * 4,
            transcendentals=0,
        ),
        interpret=interpret,
        name="augment",
    )(numbers[:, None], factors[:, None], words)
    return jnp.stack(_unpack(words), axis=-1).astype(jnp.uint8)


def _numbers(layer: Operation) -> jax.Array:
    """Returns the integers of operations, int32 (batch, NUMBERS)."""
    others = (layer.threshold, layer.mask, layer.stretch, layer.equalize)
    columns = [x.astype(jnp.int32)[:, None] for x in (*others, layer.degenerate)]
    return jnp.concatenate([layer.matrix, *columns], axis=1)


def _kernel(
    size, layers, numbers, factors, words, out, image, tables, turned, lines, moved
):
    # The padding of `image` is never used.
    image[: size[0], : size[1]] = words[0]

    @pl.loop(0, layers)
    def _(layer):
        def number(which):
            return numbers[0, 0, layer * NUMBERS + which]

        stretch, equalize = number(STRETCH) != 0, number(EQUALIZE) != 0
        threshold, mask = number(THRESHOLD), number(MASK)
        factor, degenerate = factors[0, 0, layer], number(DEGENERATE)
        matrix = [number(MATRIX + i) for i in range(6)]

        @pl.when(stretch)
        def _():
            fill_tables(image, tables, size, _stretched)

        @pl.when(equalize)
        def _():
            fill_tables(image, tables, size, _equalized)

        @pl.when(stretch | equalize)
        def _():
            look_up(image, tables, size)

        @pl.when((threshold < 256) | (mask != 255))
        def _():
            invert_and_mask(image, size, threshold, mask)

        for i, name in enumerate(BLENDS):

            @pl.when((factor != 1) & (degenerate == i))
            def _(name=name):
                blend(image, moved.at[0], size, factor, name)

        still = operation("Identity").matrix.tolist()
        changed = [n != s for n, s in zip(matrix, still, strict=True)]

        @pl.when(functools.reduce(jnp.logical_or, changed))
        def _():
            move(image, turned, lines, moved, size, matrix)

    out[0] = image[: size[0], : size[1]]


def fill_tables(image, tables, size, function: Callable) -> None:
    """Computes a table of 256 levels for each color."""
    for color in range(3):

        def levels(block, height, shift=8 * color):
            rows = pl.ds(pl.multiple_of(block * height, height), height)
            return image[rows, :] >> shift & 255

        tables[color : color + 1, :] = function(levels, image.shape[1], size)


def _stretched(levels: Callable, columns: int, size) -> jax.Array:
    """Returns the table of ImageOps.autocontrast, (1, 256)."""
    shape = (ROWS, columns)

    def extend(block, ends):
        x, inside = levels(block, ROWS), _inside(shape, size, block)
        low, high = ends
        return (
            jnp.minimum(low, jnp.where(inside, x, 255)),
            jnp.maximum(high, jnp.where(inside, x, 0)),
        )

    start = jnp.full(shape, 255, jnp.int32), jnp.zeros(shape, jnp.int32)
    low, high = jax.lax.fori_loop(0, _blocks(size), extend, start)
    low, high = jnp.min(low, keepdims=True), jnp.max(high, keepdims=True)
    level = jax.lax.broadcasted_iota(jnp.int32, (1, 256), 1)
    table = _floor_divide((level - low) * 255, jnp.maximum(high - low, 1))
    return jnp.where(high > low, jnp.clip(table, 0, 255), level)


def _equalized(levels: Callable, columns: int, size) -> jax.Array:
    """Returns the table of ImageOps.equalize, (1, 256)."""
    counts = _histogram(levels, columns, size)
    v, w = _position((256, 256))
    # Counts stay below 2^24, so that these sums are exact.
    before = jnp.dot(
        jnp.broadcast_to(counts, (REGISTER_ROWS, 256)),
        (v < w).astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )[:1].astype(jnp.int32)
    # The number of pixels below the brightest level, in 255 steps.
    last = jnp.max(jnp.where(counts > 0, before, 0), axis=1, keepdims=True)
    step = _floor_divide(last, 255)
    table = _floor_divide(before + (step >> 1), jnp.maximum(step, 1))
    level = jax.lax.broadcasted_iota(jnp.int32, (1, 256), 1)
    return jnp.where(step > 0, jnp.minimum(table, 255), level)


def _histogram(levels: Callable, columns: int, size) -> jax.Array:
    """Counts levels, float32 (1, 256).

    The product of one-hot low and high four bits, summed over pixels, counts pairs.
    """

    def count(block, counts):
        x = levels(block, REGISTER_ROWS)
        # The high half of padding, 16, is not counted.
        inside = _inside((REGISTER_ROWS, columns), size, block)
        return counts + jax.lax.dot_general(
            _one_hot(x & 15),
            _one_hot(jnp.where(inside, x >> 4, 16)),
            (((1,), (1,)), ((), ())),
            preferred_element_type=jnp.float32,
        )

    counts = jax.lax.fori_loop(
        0, pl.cdiv(size[0], REGISTER_ROWS), count, jnp.zeros((16, 16), jnp.float32)
    )
    half, level = _position((16, 256))
    by_low = jnp.dot(
        counts,
        (half == level >> 4).astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
    return jnp.sum(jnp.where(half == (level & 15), by_low, 0), axis=0, keepdims=True)


def _one_hot(halves: jax.Array) -> jax.Array:
    """Returns one-hot vectors of all elements side by side, bfloat16 (16, elements)."""
    height, columns = halves.shape
    lines = [jnp.broadcast_to(halves[i : i + 1], (16, columns)) for i in range(height)]
    line = jnp.concatenate(lines, axis=1)
    index = jax.lax.broadcasted_iota(jnp.int32, line.shape, 0)
    return (line == index).astype(jnp.float32).astype(jnp.bfloat16)


def look_up(image, tables, size) -> None:
    """Maps the levels of each color by its table."""

    @pl.loop(0, _blocks(size))
    def _(block):
        rows = _rows(block)
        levels = []
        for color, level in enumerate(_unpack(image[rows, :])):
            table = jnp.broadcast_to(tables[color : color + 1, :], (ROWS, 256))
            levels.append(_take([table[:, :LANES], table[:, LANES:]], level))
        image[rows, :] = _pack(levels)


def invert_and_mask(image, size, threshold, mask) -> None:
    """Inverts levels from a threshold on, and masks their bits."""

    @pl.loop(0, _blocks(size))
    def _(block):
        rows = _rows(block)
        levels = _unpack(image[rows, :])
        image[rows, :] = _pack(
            [jnp.where(x >= threshold, 255 - x, x) & mask for x in levels]
        )


def blend(image, smooth, size, factor, name: str) -> None:
    """Applies an operation of ImageEnhance: see `operations.pointwise`."""
    if name == "Contrast":
        mean = _mean_gray(image, size)
    if name == "Sharpness":
        _smooth(image, smooth, size)

    @pl.loop(0, _blocks(size))
    def _(block):
        rows = _rows(block)
        levels = _unpack(image[rows, :])
        starts = {
            "Brightness": lambda: [0] * 3,
            "Contrast": lambda: [mean] * 3,
            "Color": lambda: [luma(*levels)] * 3,
            "Sharpness": lambda: _unpack(smooth[rows, :]),
        }[name]()
        blended = []
        for x, start in zip(levels, starts, strict=True):
            result = start + factor * (x - start).astype(jnp.float32)
            blended.append(jnp.clip(jnp.floor(result), 0, 255).astype(jnp.int32))
        image[rows, :] = _pack(blended)


def _mean_gray(image, size) -> jax.Array:
    """Returns the mean gray level, rounded half up, (1, 1)."""
    shape = (ROWS, image.shape[1])

    def add(block, total):
        gray = luma(*_unpack(image[_rows(block), :]))
        return total + jnp.where(_inside(shape, size, block), gray, 0)

    total = jax.lax.fori_loop(0, _blocks(size), add, jnp.zeros(shape, jnp.int32))
    count = size[0] * size[1]
    return _floor_divide(2 * jnp.sum(total, keepdims=True) + count, 2 * count)


def _smooth(image, smooth, size) -> None:
    """Applies Pillow's ImageFilter.SMOOTH: a mean with weight 5 in the center."""
    height, width = size
    rows, columns = image.shape
    # One row would do above and below a block, but loads are of whole registers.
    margin = REGISTER_ROWS

    @pl.loop(0, _blocks(size))
    def _(block):
        start = block * ROWS
        above = pl.multiple_of(jnp.maximum(start - margin, 0), margin)
        below = pl.multiple_of(jnp.minimum(start + ROWS, rows - margin), margin)
        words = jnp.concatenate(
            [
                image[pl.ds(above, margin), :],
                image[_rows(block), :],
                image[pl.ds(below, margin), :],
            ],
            axis=0,
        )
        row, column = _position((ROWS, columns), block)
        inner = (row > 0) & (row < height - 1) & (column > 0) & (column < width - 1)
        levels = []
        for x in _unpack(words):
            total = x
            for axis in (0, 1):
                # A roll by the last position is one by -1.
                last = total.shape[axis] - 1
                total += pltpu.roll(total, 1, axis) + pltpu.roll(total, last, axis)
            center, total = (v[margin : margin + ROWS] for v in (x, total))
            # (total + 4 center) / 13, rounded; 13 is odd, so there are no ties.
            mean = _floor_divide(2 * (total + 4 * center) + 13, 26)
            levels.append(jnp.where(inner, mean, center))
        smooth[_rows(block), :] = _pack(levels)


def move(image, turned, lines, moved, size, matrix) -> None:
    """Applies an affine map: nearest pixels, and gray outside the image.

    The pixel at (x, y) comes from column u = (a x + b y + c) >> 16 and row
    (d x + e y + f) >> 16. At most two neighboring x of a row y have the same column u,
    since 1/2 < a <= 1: x = first(u, y) + k for k = 0, 1. Pixel (y, u) of the kth of two
    intermediate images is the one for that x, gathered along columns; the result
    gathers from both along rows.
    """
    a, b, c, d, e, f = matrix
    rows, columns = image.shape

    def first(u, y):
        """Returns the first x of row y whose column is u."""
        return -_floor_divide(b * y + c - (u << 16), a)

    def segments(array, block, length):
        starts = range(0, length, LANES)
        return [array[_rows(block), pl.ds(start, LANES)] for start in starts]

    _transpose(image, turned)
    for k in range(2):

        @pl.loop(0, pl.cdiv(size[1], ROWS))
        def _(block, k=k):
            u, y = _position((ROWS, rows), block)
            top = (d * (first(u, y) + k) + e * y + f) >> 16
            lines[_rows(block), :] = _take(segments(turned, block, rows), top)

        _transpose(lines, moved.at[k])

    gray = _pack([FILL] * 3)

    @pl.loop(0, _blocks(size))
    def _(block):
        y, x = _position((ROWS, columns), block)
        left, _, inside = origin(matrix, x, y, size)
        taken = [_take(segments(moved.at[k], block, columns), left) for k in range(2)]
        chosen = jnp.where(x == first(left, y), *taken)
        image[_rows(block), :] = jnp.where(inside, chosen, gray)


def _transpose(source, target) -> None:
    for i in range(0, source.shape[0], LANES):
        for j in range(0, source.shape[1], LANES):
            tile = source[pl.ds(i, LANES), pl.ds(j, LANES)]
            target[pl.ds(j, LANES), pl.ds(i, LANES)] = tile.T


def _take(segments: Sequence[jax.Array], index: jax.Array) -> jax.Array:
    """Gathers within each line.

    Args:
      segments: the lines, cut into segments (lines, LANES).
      index: (lines, any multiple of LANES); the result is arbitrary outside the lines.
    """
    results = []
    for start in range(0, index.shape[1], LANES):
        part = index[:, start : start + LANES]
        taken = [
            jnp.take_along_axis(
                segment, part & (LANES - 1), axis=1, mode="promise_in_bounds"
            )
            for segment in segments
        ]
        result = taken[0]
        for i in range(1, len(segments)):
            result = jnp.where(part >> LANES_SHIFT == i, taken[i], result)
        results.append(result)
    return jnp.concatenate(results, axis=1)


def _blocks(size) -> int:
    return pl.cdiv(size[0], ROWS)


def _rows(block) -> pl.Slice:
    return pl.ds(pl.multiple_of(block * ROWS, ROWS), ROWS)


def _position(shape, block=0) -> tuple[jax.Array, jax.Array]:
    """Returns row and column of each pixel of a block."""
    row = jax.lax.broadcasted_iota(jnp.int32, shape, 0) + block * shape[0]
    return row, jax.lax.broadcasted_iota(jnp.int32, shape, 1)


def _inside(shape, size, block) -> jax.Array:
    """Returns which pixels of a block are not padding."""
    row, column = _position(shape, block)
    return (row < size[0]) & (column < size[1])


def _floor_divide(n: jax.Array, d) -> jax.Array:
    """Divides int32 n by d > 0, rounded down; TPUs divide only in floating point."""
    d = jnp.asarray(d, jnp.int32)
    result = jnp.floor(n.astype(jnp.float32) / d.astype(jnp.float32)).astype(jnp.int32)
    rest = n - result * d
    return result + jnp.where(rest < 0, -1, 0) + jnp.where(rest >= d, 1, 0)


def _pack(levels: Sequence[jax.Array]) -> jax.Array:
    """Packs red, green and blue in one word a pixel."""
    red, green, blue = levels
    return red | green << 8 | blue << 16


def _unpack(words: jax.Array) -> list[jax.Array]:
    """Returns the levels of red, green and blue."""
    return [words >> shift & 255 for shift in (0, 8, 16)]
