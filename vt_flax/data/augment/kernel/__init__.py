"""The image operations as one TPU kernel, which does for an image only what it needs.

Outside a kernel every image of a batch goes through every operation, and reads pixels
from anywhere one by one: for AutoAugment as much work as a small network's whole step.
Here each image is brought to on-chip memory once, all its layers of operations are
applied there, behind real branches, and it is written back.

A pixel is one 32-bit word, red in the lowest byte, so that moving it moves all colors.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from vt_flax.data.augment.kernel import blends, layout, moves, tables
from vt_flax.data.augment.operations import BLENDS, Operation, operation
from vt_flax.experimental import pallas as pl
from vt_flax.experimental import pallas_tpu as pltpu

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
    rows, columns = (
        pl.cdiv(side, layout.LANES) * layout.LANES for side in (height, width)
    )
    words = layout.pack([images[..., i].astype(jnp.int32) for i in range(3)])
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
    return jnp.stack(layout.unpack(words), axis=-1).astype(jnp.uint8)


def _numbers(layer: Operation) -> jax.Array:
    """An operation's whole numbers, int32 (batch, NUMBERS)."""
    others = (layer.threshold, layer.mask, layer.stretch, layer.equalize)
    columns = [x.astype(jnp.int32)[:, None] for x in (*others, layer.degenerate)]
    return jnp.concatenate([layer.matrix, *columns], axis=1)


def _kernel(
    size, layers, numbers, factors, words, out, image, levels, turned, lines, moved
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
            tables.fill(image, levels, size, tables.stretched)

        @pl.when(equalize)
        def _():
            tables.fill(image, levels, size, tables.equalized)

        @pl.when(stretch | equalize)
        def _():
            tables.look_up(image, levels, size)

        @pl.when((threshold < 256) | (mask != 255))
        def _():
            layout.each_level(
                image,
                size,
                lambda x: jnp.where(x >= threshold, 255 - x, x) & mask,
            )

        for i, name in enumerate(BLENDS):

            @pl.when((factor != 1) & (degenerate == i))
            def _(name=name):
                blends.blend(image, moved.at[0], size, factor, name)

        still = operation("Identity").matrix.tolist()
        changed = [n != s for n, s in zip(matrix, still, strict=True)]

        @pl.when(functools.reduce(jnp.logical_or, changed))
        def _():
            moves.move(image, turned, lines, moved, size, matrix)

    out[0] = image[: size[0], : size[1]]
