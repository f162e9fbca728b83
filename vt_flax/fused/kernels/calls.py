"""Calls of kernels that work on one example at a time.

Convolutions leave maps with the batch next to the channels, since the batch fills
tiles: (pixels, batch, C) in HBM. Kernels read and write that layout, and transpose on
the chip; a map that is transposed in HBM is read and written once more.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vt_flax.experimental import pallas as pl
from vt_flax.experimental import pallas_tpu as pltpu
from vt_flax.fused.platforms import EXAMPLES, TooLarge

# On-chip memory that the compiler takes beside the arrays.
SPARE_BYTES = 12 * 2**20

Shape = tuple[int, ...]


def on_chip_memory() -> float:
    """Returns the bytes of on-chip memory; infinite for devices unknown to Pallas."""
    try:
        return pltpu.get_tpu_info().vmem_capacity_bytes
    except ValueError:
        return math.inf


def call(
    body: Callable[..., tuple[Sequence, Sequence, Sequence]],
    name: str,
    maps: Sequence[jax.Array],
    rows: Mapping[str, jax.Array],
    new_maps: Sequence[Shape] = (),
    new_rows: Sequence[tuple[Shape, Any]] = (),
    totals: Sequence[Shape] = (),
    *,
    macs: int,
    interpret: bool,
) -> tuple[list[jax.Array], list[jax.Array], list[jax.Array]]:
    """Calls a function on each example of a batch, as a kernel.

    Args:
      body: takes the maps of an example, one by one, and its rows by name; returns new
        maps, new rows, and terms of the totals.
      name: of the kernel.
      maps: (batch, pixels, C) each, of one type.
      rows: (batch, rows, C) each, or (1, rows, C) for those that all examples share.
      new_maps: pixels and channels of each map that the body returns, of the type of
        the maps.
      new_rows: shape and type of the rows that it returns.
      totals: shapes of the sums over the batch.
      macs: multiply-adds of the whole batch.
      interpret: whether to interpret the kernel, slowly, where there is no TPU.

    Returns:
      New maps (batch, pixels, C), new rows (batch, ...), and totals, float32.

    Raises:
      TooLarge: if the chip has too little memory.
    """
    batch, dtype = maps[0].shape[0], maps[0].dtype
    examples = min(batch, EXAMPLES)
    steps = batch // examples
    transposed = [jnp.swapaxes(array, 0, 1) for array in maps]
    map_out = [
        jax.ShapeDtypeStruct((pixels, batch, channels), dtype)
        for pixels, channels in new_maps
    ]
    row_out = [jax.ShapeDtypeStruct((batch, *s), dtype) for s, dtype in new_rows]
    sum_out = [jax.ShapeDtypeStruct((steps, *s), jnp.float32) for s in totals]

    def kernel(*refs):
        refs = list(refs)

        def take(count):
            taken, refs[:] = refs[:count], refs[count:]
            return taken

        map_refs, row_refs = take(len(transposed)), take(len(rows))
        outs, row_outs, sums = take(len(map_out)), take(len(row_out)), take(len(totals))
        own_maps, own_outs = take(len(transposed)), take(len(map_out))
        for ref, inside in zip(map_refs, own_maps, strict=True):
            inside[...] = jnp.swapaxes(ref[...], 0, 1)
        for ref in sums:
            ref[...] = jnp.zeros_like(ref)

        @pl.loop(0, examples)
        def _(i):
            own = {
                key: ref[0] if rows[key].shape[0] == 1 else ref[i]
                for key, ref in zip(rows, row_refs, strict=True)
            }
            found, found_rows, terms = body(*[inside[i] for inside in own_maps], **own)
            for ref, value in zip(
                (*own_outs, *row_outs), (*found, *found_rows), strict=True
            ):
                ref[i] = value.astype(ref.dtype)
            for ref, value in zip(sums, terms, strict=True):
                ref[0] += value

        for ref, inside in zip(outs, own_outs, strict=True):
            ref[...] = jnp.swapaxes(inside[...], 0, 1)

    def map_spec(array):
        block = (array.shape[0], examples, array.shape[2])
        return pl.BlockSpec(block, lambda i: (0, i, 0))

    def row_spec(array):
        if array.shape[0] == 1:
            return pl.BlockSpec(array.shape, lambda i: (0, 0, 0))
        each = array.shape[0] // steps
        return pl.BlockSpec((each, *array.shape[1:]), lambda i: (i, 0, 0))

    def inside(array):
        return pltpu.VMEM((examples, array.shape[0], array.shape[2]), dtype)

    inputs: tuple[Any, ...] = (*transposed, *rows.values())
    outputs: tuple[Any, ...] = (*map_out, *row_out, *sum_out)
    moved = sum(x.size * x.dtype.itemsize for x in (*inputs, *outputs))
    # Arrays of two steps in flight, and the transposed maps.
    needed = SPARE_BYTES + 4 * moved // steps
    if needed > on_chip_memory():
        raise TooLarge
    found = pl.pallas_call(
        kernel,
        out_shape=list(outputs),
        grid=(steps,),
        in_specs=[*map(map_spec, transposed), *map(row_spec, rows.values())],
        out_specs=[*map(map_spec, map_out), *map(row_spec, (*row_out, *sum_out))],
        scratch_shapes=[inside(array) for array in (*transposed, *map_out)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",),
            vmem_limit_bytes=needed,
        ),
        # Of memory, exactly the bytes that are read and written.
        cost_estimate=pl.CostEstimate(
            flops=2 * macs,
            bytes_accessed=moved,
            transcendentals=0,
        ),
        interpret=interpret,
        name=name,
    )(*inputs)
    maps_end = len(map_out)
    rows_end = maps_end + len(row_out)
    return (
        [jnp.swapaxes(array, 0, 1) for array in found[:maps_end]],
        found[maps_end:rows_end],
        [jnp.sum(array, axis=0) for array in found[rows_end:]],
    )
