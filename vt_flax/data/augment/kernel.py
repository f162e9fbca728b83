"""The image operations as one TPU kernel, which does for an image only what it needs.

Outside a kernel every image of a batch goes through every operation, and reads pixels
from anywhere one by one: for AutoAugment as much work as a small network's whole step.
Here each image is brought to on-chip memory once, all its layers of operations are
applied there, behind real branches, and it is written back.

A pixel is one 32-bit word, red in the lowest byte, so that moving it moves all colours.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from vt_flax.data.augment.operations import BLENDS, FILL, Operation
from vt_flax.experimental import pallas as pl
from vt_flax.experimental import pallas_tpu as pltpu

# Lanes of a vector register: how far apart pixels may be that one gather brings
# together. Images are padded to multiples of it, since they are turned on their side.
LANES = 128
SHIFT = 7  # by which an index is divided by LANES
# Rows that are worked on at a time: few enough for the registers.
ROWS = 32

# Where an operation's numbers lie.
MATRIX, THRESHOLD, MASK, STRETCH, EQUALIZE, DEGENERATE, NUMBERS = 0, 6, 7, 8, 9, 10, 11


def apply_in_kernel(
    images: jax.Array, layers: Sequence[Operation], interpret: bool = False
) -> jax.Array:
    """Applies to each image its operations, one layer after the other.

    Args:
      images: uint8, (batch, H, W, 3), on one device.
      layers: parameters (batch,) of each layer: pointwise first, then the affine map,
        whose first coefficient a has 1/2 < a <= 1.
      interpret: whether to run the kernel where there is no TPU, slowly.

    Returns:
      uint8, (batch, H, W, 3): what `operations.apply_layers` returns.
    """
    batch, height, width = images.shape[:3]
    rows, columns = (-(-side // LANES) * LANES for side in (height, width))
    red, green, blue = (images[..., i].astype(jnp.int32) for i in range(3))
    words = red | green << 8 | blue << 16
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
        # Of memory exactly what is read and written. Of arithmetic the most there can
        # be: every layer equalizes (the product behind the histogram) and moves.
        cost_estimate=pl.CostEstimate(
            flops=len(layers) * (3 * 2 * 16 * 16 + 200) * words.size,
            bytes_accessed=2 * words.size * 4,
            transcendentals=0,
        ),
        interpret=interpret,
        name="augment",
    )(numbers[:, None], factors[:, None], words)
    levels = [words >> shift & 255 for shift in (0, 8, 16)]
    return jnp.stack(levels, axis=-1).astype(jnp.uint8)


def _numbers(layer: Operation) -> jax.Array:
    """An operation's whole numbers, int32 (batch, NUMBERS)."""
    others = (layer.threshold, layer.mask, layer.stretch, layer.equalize)
    columns = [x.astype(jnp.int32)[:, None] for x in (*others, layer.degenerate)]
    return jnp.concatenate([layer.matrix, *columns], axis=1)


def _kernel(
    size, layers, numbers, factors, words, out, image, tables, turned, lines, moved
):
    # What `image` has beyond its size stays whatever it is, and is never used.
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
            _fill_tables(image, tables, size, _stretched)

        @pl.when(equalize)
        def _():
            _fill_tables(image, tables, size, _equalized)

        @pl.when(stretch | equalize)
        def _():
            _look_up(image, tables, size)

        @pl.when((threshold < 256) | (mask != 255))
        def _():
            _each_level(
                image,
                size,
                lambda x: jnp.where(x >= threshold, 255 - x, x) & mask,
            )

        for i, name in enumerate(BLENDS):

            @pl.when((factor != 1) & (degenerate == i))
            def _(name=name):
                _blend(image, moved.at[0], size, factor, name)

        a, b, c, d, e, f = matrix
        half = 1 << 15  # a pixel's centre, as in `operations._fixed`
        stays = (a == 2 * half) & (b == 0) & (c == half) & (d == 0) & (e == 2 * half)

        @pl.when(jnp.logical_not(stays & (f == half)))
        def _():
            _move(image, turned, lines, moved, size, matrix)

    out[0] = image[: size[0], : size[1]]


def _blocks(size) -> int:
    """How many blocks of rows an image of some size has."""
    return -(-size[0] // ROWS)


def _rows(block) -> pl.Slice:
    return pl.ds(pl.multiple_of(block * ROWS, ROWS), ROWS)


def _position(shape, block=0) -> tuple[jax.Array, jax.Array]:
    """Row and column of each pixel of a block."""
    row = jax.lax.broadcasted_iota(jnp.int32, shape, 0) + block * shape[0]
    return row, jax.lax.broadcasted_iota(jnp.int32, shape, 1)


def _inside(shape, size, block=0) -> jax.Array:
    """Which pixels of a block belong to the image and are no padding."""
    row, column = _position(shape, block)
    return (row < size[0]) & (column < size[1])


def _floor_divide(n: jax.Array, d) -> jax.Array:
    """Divides int32 n by d > 0, rounded down; TPUs divide only in floating point."""
    d = jnp.asarray(d, jnp.int32)
    result = jnp.floor(n.astype(jnp.float32) / d.astype(jnp.float32)).astype(jnp.int32)
    rest = n - result * d
    return result + jnp.where(rest < 0, -1, 0) + jnp.where(rest >= d, 1, 0)


def _each_level(image, size, function: Callable[[jax.Array], jax.Array]) -> None:
    """Puts the levels of all pixels and colours through a function."""

    @pl.loop(0, _blocks(size))
    def _(block):
        rows = _rows(block)
        words = image[rows, :]
        image[rows, :] = _pack([function(words >> s & 255) for s in (0, 8, 16)])


def _pack(levels: Sequence[jax.Array]) -> jax.Array:
    red, green, blue = levels
    return red | green << 8 | blue << 16


def _grey(words: jax.Array) -> jax.Array:
    """Pillow's conversion to L."""
    red, green, blue = (words >> shift & 255 for shift in (0, 8, 16))
    return (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16


def _fill_tables(image, tables, size, function: Callable) -> None:
    """Makes a table of 256 levels for each colour."""
    for colour in range(3):

        def levels(block, height, shift=8 * colour):
            rows = pl.ds(pl.multiple_of(block * height, height), height)
            return image[rows, :] >> shift & 255

        tables[colour : colour + 1, :] = function(levels, image.shape[1], size)


def _stretched(levels: Callable, columns: int, size) -> jax.Array:
    """ImageOps.autocontrast's table, (1, 256)."""
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
    """ImageOps.equalize's table, (1, 256)."""
    counts = _histogram(levels, columns, size)
    v, w = _position((256, 256))
    # Counts stay below 2^24, so that these sums are exact.
    before = jnp.dot(
        jnp.broadcast_to(counts, (8, 256)),
        (v < w).astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )[:1].astype(jnp.int32)
    # The pixels below the brightest level that occurs, in 255 steps.
    last = jnp.max(jnp.where(counts > 0, before, 0), axis=1, keepdims=True)
    step = _floor_divide(last, 255)
    table = _floor_divide(before + (step >> 1), jnp.maximum(step, 1))
    level = jax.lax.broadcasted_iota(jnp.int32, (1, 256), 1)
    return jnp.where(step > 0, jnp.minimum(table, 255), level)


def _histogram(levels: Callable, columns: int, size) -> jax.Array:
    """How often each level occurs, float32 (1, 256).

    Of a level's low and high four bits are made one-hot vectors; the product of all low
    and all high ones, summed over pixels, counts pairs of them.
    """
    height = 8  # the rows of a register

    def count(block, counts):
        x = levels(block, height)
        # Padding has a high half that does not occur.
        high = jnp.where(_inside((height, columns), size, block), x >> 4, 16)
        return counts + jax.lax.dot_general(
            _one_hot(x & 15),
            _one_hot(high),
            (((1,), (1,)), ((), ())),
            preferred_element_type=jnp.float32,
        )

    counts = jax.lax.fori_loop(
        0, -(-size[0] // height), count, jnp.zeros((16, 16), jnp.float32)
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
    """One-hot vectors of all elements side by side, bfloat16 (16, elements)."""
    height, columns = halves.shape
    lines = [jnp.broadcast_to(halves[i : i + 1], (16, columns)) for i in range(height)]
    line = jnp.concatenate(lines, axis=1)
    which = jax.lax.broadcasted_iota(jnp.int32, line.shape, 0)
    return (line == which).astype(jnp.float32).astype(jnp.bfloat16)


def _look_up(image, tables, size) -> None:
    """Puts each colour through its table."""

    @pl.loop(0, _blocks(size))
    def _(block):
        rows = _rows(block)
        words = image[rows, :]
        levels = []
        for colour in range(3):
            table = jnp.broadcast_to(tables[colour : colour + 1, :], (ROWS, 256))
            halves = [table[:, :LANES], table[:, LANES:]]
            levels.append(_take(halves, words >> 8 * colour & 255))
        image[rows, :] = _pack(levels)


def _take(parts: Sequence[jax.Array], index: jax.Array) -> jax.Array:
    """Takes from each line what its indices say.

    Args:
      parts: lines, cut into pieces of LANES: (lines, LANES) each.
      index: (lines, any multiple of LANES); of no meaning where there is no such part.
    """
    pieces = []
    for start in range(0, index.shape[1], LANES):
        piece = index[:, start : start + LANES]
        found = [
            jnp.take_along_axis(
                part, piece & (LANES - 1), axis=1, mode="promise_in_bounds"
            )
            for part in parts
        ]
        result = found[0]
        for i in range(1, len(parts)):
            result = jnp.where(piece >> SHIFT == i, found[i], result)
        pieces.append(result)
    return jnp.concatenate(pieces, axis=1)


def _blend(image, smooth, size, factor, name: str) -> None:
    """Blends the image with what ImageEnhance takes for it; see `_degenerate`."""
    mean = 0
    if name == "Contrast":
        mean = _mean_grey(image, size)
    if name == "Sharpness":
        _smooth(image, smooth, size)

    @pl.loop(0, _blocks(size))
    def _(block):
        rows = _rows(block)
        words = image[rows, :]
        levels = []
        for shift in (0, 8, 16):
            x = words >> shift & 255
            start = {
                "Brightness": lambda: 0,
                "Contrast": lambda: mean,
                "Color": lambda: _grey(words),
                "Sharpness": lambda shift=shift: smooth[rows, :] >> shift & 255,
            }[name]()
            result = start + factor * (x - start).astype(jnp.float32)
            levels.append(jnp.clip(jnp.floor(result), 0, 255).astype(jnp.int32))
        image[rows, :] = _pack(levels)


def _mean_grey(image, size) -> jax.Array:
    """The mean of all pixels in grey, rounded half up, (1, 1)."""
    shape = (ROWS, image.shape[1])

    def add(block, total):
        grey = _grey(image[_rows(block), :])
        return total + jnp.where(_inside(shape, size, block), grey, 0)

    total = jax.lax.fori_loop(0, _blocks(size), add, jnp.zeros(shape, jnp.int32))
    count = size[0] * size[1]
    return _floor_divide(2 * jnp.sum(total, keepdims=True) + count, 2 * count)


def _smooth(image, smooth, size) -> None:
    """Pillow's ImageFilter.SMOOTH: a mean with weight 5 in the middle; borders stay."""
    height, width = size
    rows, columns = image.shape
    margin = 8  # rows of a register, though one above and one below would do

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
        for shift in (0, 8, 16):
            x = words >> shift & 255
            total = x
            for axis in (0, 1):
                last = total.shape[axis] - 1
                # A roll by the last position is one by 1 the other way.
                total += pltpu.roll(total, 1, axis) + pltpu.roll(total, last, axis)
            x, total = (v[margin : margin + ROWS] for v in (x, total))
            # (total + 4 middle) / 13, rounded; 13 is odd, so there are no ties.
            mean = _floor_divide(2 * (total + 4 * x) + 13, 26)
            levels.append(jnp.where(inner, mean, x))
        smooth[_rows(block), :] = _pack(levels)


def _move(image, turned, lines, moved, size, matrix) -> None:
    """Brings each pixel from where the affine map says: the nearest one, or grey.

    The pixel at (x, y) comes from column u = (a x + b y + c) >> 16 and row
    (d x + e y + f) >> 16. At most two neighbouring x of a row y have the same column u,
    since 1/2 < a <= 1: call them the 0th and the 1st. So there are two images whose
    pixel (y, u) is the one that the kth x finds in column u. Each takes its pixels
    along columns, and the result takes its own from the two along rows.
    """
    a, b, c, d, e, f = matrix
    rows, columns = image.shape

    def first(u, y):
        """The first x of row y whose column is u."""
        return -_floor_divide(b * y + c - (u << 16), a)

    _turn(image, turned)
    for k in range(2):

        @pl.loop(0, -(-size[1] // ROWS))
        def _(block, k=k):
            u, y = _position((ROWS, rows), block)
            top = (d * (first(u, y) + k) + e * y + f) >> 16
            parts = [turned[_rows(block), pl.ds(i, LANES)] for i in _starts(rows)]
            lines[_rows(block), :] = _take(parts, top)

        _turn(lines, moved.at[k])

    grey = _pack([FILL] * 3)

    @pl.loop(0, _blocks(size))
    def _(block):
        y, x = _position((ROWS, columns), block)
        left, top = (a * x + b * y + c) >> 16, (d * x + e * y + f) >> 16
        inside = (left >= 0) & (left < size[1]) & (top >= 0) & (top < size[0])
        found = [
            _take(
                [moved[k, _rows(block), pl.ds(i, LANES)] for i in _starts(columns)],
                left,
            )
            for k in range(2)
        ]
        chosen = jnp.where(x == first(left, y), *found)
        image[_rows(block), :] = jnp.where(inside, chosen, grey)


def _starts(columns: int) -> range:
    return range(0, columns, LANES)


def _turn(source, target) -> None:
    """Transposes an image."""
    for i in _starts(source.shape[0]):
        for j in _starts(source.shape[1]):
            part = source[pl.ds(i, LANES), pl.ds(j, LANES)]
            target[pl.ds(j, LANES), pl.ds(i, LANES)] = part.T
