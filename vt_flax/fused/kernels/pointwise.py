"""Gradients of a 1 x 1 convolution, as TPU kernels: both in one pass over its maps.

A matrix W, (narrow, wide), leads from a narrow map to a wide one, or back if it is
transposed. Maps are taken as convolutions leave them in memory: (H, W, batch, channels)
or, where only the batch fills lanes, (H, W, channels, batch).
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from vt_flax.experimental import pallas as pl
from vt_flax.experimental import pallas_tpu as pltpu
from vt_flax.fused.kernels.blocks import COLUMNS, ROWS, product
from vt_flax.fused.kernels.calls import bytes_of
from vt_flax.fused.pixel_attention import LANES
from vt_flax.fused.platforms import Arrays

# Examples at a time where they need not fill lanes.
EXAMPLES = 64
# Of all maps in a step.
STEP_BYTES = 3 * 2**19
# On the chip, beside what is known to lie there: what the compiler puts aside.
SPARE_BYTES = 4 * 2**20


def widening(
    arrays: Arrays, *, rectify: bool = False, grain: int = 0, interpret: bool = False
) -> Arrays:
    """Returns the cotangents of x W + b: of `x`, `kernel` and `bias`.

    Args:
      arrays: `x`, (batch, H, W, narrow); `kernel`, (1, narrow, wide); `dy`, (batch,
        H, W, wide), the cotangent of the result; `shares`, (batch, parts), if examples
        get unlike shares of the parts of b.
      rectify: whether max(x, 0) was taken for `x`.
      grain: channels of the maps that `x` is put together of; 0 if it is one.
      interpret: whether to run it where there is no TPU, slowly.

    Returns:
      That of `x`; those of `kernel`, (n, narrow, wide), and of `bias`, (n, parts or 1,
      wide), float32: the sums over n shares of the pixels.
    """
    dx, dkernel, dbias = _call(
        "widening_gradients",
        arrays["x"],
        (arrays["dy"],),
        arrays["kernel"][0],
        functools.partial(_widening_step, rectify=rectify),
        wide=False,
        shares=arrays.get("shares"),
        grain=grain,
        interpret=interpret,
    )
    return {"x": dx, "kernel": dkernel, "bias": dbias}


def narrowing(arrays: Arrays, *, interpret: bool = False) -> Arrays:
    """Returns the cotangents of r W^T beside r itself, where r = max(x, 0).

    Args:
      arrays: `x`, (batch, H, W, wide); `kernel`, (1, narrow, wide); `dr`,
        (batch, H, W, wide), or (batch, H / 2, W / 2, wide) if only every second pixel
        of r is used, and `dy`, (batch, H, W, narrow): the cotangents of r and of r W^T.
      interpret: whether to run it where there is no TPU, slowly.

    Returns:
      That of `x`; that of `kernel`, (n, narrow, wide), float32: the sums over n shares
      of the pixels.
    """
    dx, dkernel = _call(
        "narrowing_gradients",
        arrays["dy"],
        (arrays["x"], arrays["dr"]),
        arrays["kernel"][0],
        _narrowing_step,
        wide=True,
        stride=arrays["x"].shape[1] // arrays["dr"].shape[1],
        interpret=interpret,
    )
    return {"x": dx, "kernel": dkernel}


def _call(
    name: str,
    narrow: jax.Array,
    wides: tuple[jax.Array, ...],
    kernel: jax.Array,
    step: Callable[..., None],
    *,
    wide: bool,
    shares: jax.Array | None = None,
    grain: int = 0,
    stride: int = 1,
    interpret: bool,
) -> list[jax.Array]:
    """Calls the kernel whose new map is wide or narrow.

    A narrow map that is put together of maps of `grain` channels lies in memory as they
    do. With a stride of 2 the last of the wide maps holds every second pixel of every
    second row; height and width are even.
    """
    batch, height, width, channels = narrow.shape
    dtype = narrow.dtype
    in_lanes = (grain or channels) % LANES != 0 and batch % LANES == 0
    examples = LANES if in_lanes else math.gcd(batch, EXAMPLES)
    each = examples * (
        (len(wides) + wide) * kernel.shape[1] + (2 - wide) * kernel.shape[0]
    )
    pixels = STEP_BYTES // (each * dtype.itemsize)
    columns = stride * _divisor(width // stride, pixels // stride)
    rows = pixels // width
    rows = 1 if rows < stride else stride * _divisor(height // stride, rows // stride)
    grid = height // rows, width // columns, batch // examples
    steps = math.prod(grid)
    # Chips of two cores give each one half.
    parts = 2 - steps % 2

    def place(part, step):
        step = part * (steps // parts) + step
        across = grid[1] * grid[2]
        beyond = jax.lax.rem(step, across)
        return (
            jax.lax.div(step, across),
            jax.lax.div(beyond, grid[2]),
            jax.lax.rem(beyond, grid[2]),
        )

    def turned(array):
        return jnp.transpose(array, (1, 2, 3, 0) if in_lanes else (1, 2, 0, 3))

    def narrow_spec():
        if not in_lanes:
            block = (rows, columns, examples, channels)
            return pl.BlockSpec(block, lambda *at: (*place(*at), 0))

        def lanes(*at):
            *pixel, example = place(*at)
            return *pixel, 0, example

        return pl.BlockSpec((rows, columns, channels, examples), lanes)

    # Wide maps are taken flat: of one that is turned XLA writes a copy, in the pass
    # that makes it. Of a flat narrow one it would write what is normalised, in float32.
    def wide_spec(array):
        def flat(*at):
            row, column, example = place(*at)
            return row * grid[1] + column, example, 0

        return pl.BlockSpec((rows * columns, examples, array.shape[3]), flat)

    def strided_spec(array):
        def flat(*at):
            row, column, example = place(*at)
            if rows == 1:
                # Rows between need none: the block that was read last is kept.
                between = row % 2 == 1
                column = jnp.where(between, grid[1] - 1, column)
                example = jnp.where(between, grid[2] - 1, example)
                row = jax.lax.div(row, 2)
            return row * grid[1] + column, example, 0

        pixels = max(rows // 2, 1) * (columns // 2)
        return pl.BlockSpec((pixels, examples, array.shape[3]), flat)

    whole = pl.BlockSpec(kernel.shape, lambda part, step: (0, 0))
    new = wides[0] if wide else narrow
    totals, others, other_specs = [kernel.shape], [], []
    if not wide:
        totals.append((1 if shares is None else shares.shape[1], kernel.shape[1]))
    if shares is not None:
        others.append(shares)
        block = (examples, shares.shape[1])
        other_specs.append(pl.BlockSpec(block, lambda *at: (place(*at)[2], 0)))
    inputs = (
        turned(narrow),
        *(
            jnp.swapaxes(array.reshape(batch, -1, array.shape[3]), 0, 1)
            for array in wides
        ),
        *others,
        kernel,
    )
    first = inputs[1] if wide else inputs[0]
    outputs = (
        jax.ShapeDtypeStruct(first.shape, dtype),
        *(jax.ShapeDtypeStruct((parts, *s), jnp.float32) for s in totals),
    )
    wide_specs = [wide_spec(array) for array in wides]
    if stride > 1:
        wide_specs[-1] = strided_spec(wides[-1])

        def row():
            return place(pl.program_id(0), pl.program_id(1))[0]

        step = functools.partial(
            step, spread=functools.partial(_spread, rows, columns, row)
        )
    found = pl.pallas_call(
        functools.partial(step, in_lanes),
        out_shape=outputs,
        grid=(parts, steps // parts),
        in_specs=[narrow_spec(), *wide_specs, *other_specs, whole],
        out_specs=[
            wide_spec(new) if wide else narrow_spec(),
            *(
                pl.BlockSpec((None, *s), lambda part, step: (part, 0, 0))
                for s in totals
            ),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"),
            # Two steps' maps on their way, and those of one in float32. The weights and
            # their gradient twice, and what is added to it.
            vmem_limit_bytes=SPARE_BYTES + 6 * STEP_BYTES + 4 * 4 * kernel.size,
        ),
        # Of memory exactly what is read and written.
        cost_estimate=pl.CostEstimate(
            flops=4 * batch * height * width * kernel.size,
            bytes_accessed=sum(map(bytes_of, (*inputs, *outputs))),
            transcendentals=0,
        ),
        interpret=interpret,
        name=name,
    )(*inputs)
    if wide:
        return [jnp.swapaxes(found[0], 0, 1).reshape(new.shape), *found[1:]]
    back = (3, 0, 1, 2) if in_lanes else (2, 0, 1, 3)
    return [jnp.transpose(found[0], back), *found[1:]]


def _widening_step(in_lanes, x_ref, dy_ref, *refs, rectify):
    *shares_refs, kernel_ref, dx_ref, dkernel_ref, dbias_ref = refs

    @pl.when(pl.program_id(1) == 0)
    def _():
        dkernel_ref[...] = jnp.zeros_like(dkernel_ref)
        dbias_ref[...] = jnp.zeros_like(dbias_ref)

    kernel, dy = kernel_ref[...], _rows(dy_ref)
    x = _columns(x_ref) if in_lanes else _rows(x_ref)
    if in_lanes:
        dx = product(kernel, dy, COLUMNS, COLUMNS)
    else:
        dx = product(dy, kernel, COLUMNS, COLUMNS)
    if rectify:
        dx = jnp.where(x.astype(jnp.float32) > 0, dx, 0.0)
        x = jnp.maximum(x, 0)
    dx = dx.astype(dx_ref.dtype)
    if in_lanes:
        for i, place in enumerate(_pixels(dx_ref)):
            dx_ref[place] = dx[:, i * LANES : (i + 1) * LANES]
    else:
        dx_ref[...] = dx.reshape(dx_ref.shape)
    dkernel_ref[...] += product(x, dy, COLUMNS if in_lanes else ROWS, ROWS)
    total = jnp.sum(dy_ref[...].astype(jnp.float32), axis=0)
    if not shares_refs:
        dbias_ref[...] += jnp.sum(total, axis=0, keepdims=True)
    for ref in shares_refs:
        for part in range(ref.shape[1]):
            sum_ = jnp.sum(ref[:, part : part + 1] * total, axis=0, keepdims=True)
            dbias_ref[part : part + 1] += sum_


def _narrowing_step(
    in_lanes, dy_ref, x_ref, dr_ref, kernel_ref, dx_ref, dkernel_ref, *, spread=None
):
    @pl.when(pl.program_id(1) == 0)
    def _():
        dkernel_ref[...] = jnp.zeros_like(dkernel_ref)

    kernel, x = kernel_ref[...], _rows(x_ref)
    dy = _columns(dy_ref) if in_lanes else _rows(dy_ref)
    channels, positions = (ROWS, COLUMNS) if in_lanes else (COLUMNS, ROWS)
    dkernel_ref[...] += product(dy, jnp.maximum(x, 0), positions, ROWS)
    dx = product(dy, kernel, channels, ROWS)
    dr = spread(dr_ref) if spread else _rows(dr_ref)
    dx += dr.astype(jnp.float32)
    dx = jnp.where(x.astype(jnp.float32) > 0, dx, 0.0)
    dx_ref[...] = dx.astype(dx_ref.dtype).reshape(dx_ref.shape)


def _spread(rows: int, columns: int, row: Callable[[], jax.Array], ref: Any):
    """`_rows` of a block with zeros between its pixels, to `rows` and `columns`.

    If `rows` is 1, all are zeros where `row()` is odd.
    """
    pixels, empty = ref[...], jnp.zeros(ref.shape[1:], ref.dtype)
    found = jnp.concatenate(
        [
            empty if i % 2 or j % 2 else pixels[(i // 2) * (columns // 2) + j // 2]
            for i, j in itertools.product(range(rows), range(columns))
        ]
    )
    return found if rows > 1 else jnp.where(row() % 2 == 0, found, 0)


def _rows(ref: Any) -> jax.Array:
    """(pixels * examples, channels) of a block with its pixels in one axis or two."""
    return ref[...].reshape(-1, ref.shape[-1])


def _columns(ref: Any) -> jax.Array:
    """(channels, pixels * examples) of (rows, columns, channels, examples)."""
    return jnp.concatenate([ref[place] for place in _pixels(ref)], axis=1)


def _pixels(ref: Any) -> Iterable[tuple[int, int]]:
    return itertools.product(*map(range, ref.shape[:2]))


def _divisor(number: int, most: int) -> int:
    """The largest divisor that is no more than `most`; 1 if there is none."""
    return max(i for i in range(1, max(most, 1) + 1) if number % i == 0)
