"""Which classes tokens look at, where each pixel has one: taken inside a step.

A coefficient is spread evenly over its cell, and counted where the mask has a class:
what all pixels of an example have of a map is what the map has on it, and nothing is
interpolated. Shares are of that. They are of every class, and of the pixels without a
label; together they are 1.

Foreground are the pixels of all classes but those that the dataset itself calls
background, or no class (BACKGROUND). Where there is no such class, they are all that
have a label. The paper prints no such share; the definition is ours.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from vt_flax.data.masks import IGNORE
from vt_flax.training.moments import Moments, take_moments
from vt_flax.training.tasks.pixels import einsum_float32, split_rows, valid_pixels

# Names of classes that are no foreground, whatever their case.
BACKGROUND = ("background", "void", "unlabeled", "unlabelled", "ignore", "ignored")
# Less of a map than this on an example is nothing of which there are shares.
LEAST_INSIDE = 1e-6


def foreground_of(class_names: Sequence[str]) -> list[int]:
    """Returns the classes that are foreground."""
    return [i for i, name in enumerate(class_names) if name.lower() not in BACKGROUND]


def class_figures(
    maps: Mapping[str, jax.Array],
    batch: Mapping[str, jax.Array],
    shape: tuple[int, int],
    class_names: Sequence[str],
) -> dict[str, Moments]:
    """Takes the shares of a batch's maps that fall on each class.

    Args:
      maps: by module, (batch, L, h, w).
      batch: `label` uint8 (batch, H, W), IGNORE where there is none; `size` and
        `lengths`, int32 (batch, 2): height and width of each example in its own pixels
        and in the input, from the upper left corner; `mask`, bool (batch,), False for
        places that hold no example.
      shape: height and width of the input.
      class_names: of the dataset.

    Returns:
      Over the examples: for each module, after its name and `/`, `classes` (L, classes
      + 1), the last without a label, and `foreground` (L,). And what all pixels have
      alike: `classes` (classes + 1,) and `foreground` ().
    """
    labels, sizes = batch["label"], jnp.maximum(batch["size"], 1)
    height, width = labels.shape[1:]
    classes = len(class_names)
    inside = valid_pixels(sizes, height, width)
    # Those without a label after all classes, those outside nowhere.
    labels = jnp.where(labels == IGNORE, classes, labels.astype(jnp.int32))
    labels = split_rows(jnp.where(inside, labels, -1), -1)
    downs, wides = [], []
    for of_module in maps.values():
        down, across = (
            spread_weights(
                *(sizes[:, axis], batch["lengths"][:, axis]),
                *((height, width)[axis], of_module.shape[axis - 2], shape[axis]),
            )
            for axis in range(2)
        )
        downs.append(split_rows(down, 0))
        # Once for all blocks of rows.
        wides.append(einsum_float32("bxw,blhw->blhx", across, of_module))

    def one(total: jax.Array, block: tuple) -> tuple[jax.Array, None]:
        label, *downs = block
        spread = [
            einsum_float32("byh,blhx->blyx", down, wide)
            for down, wide in zip(downs, wides, strict=True)
        ]
        # The area, as a token that looks at all pixels alike.
        spread.append(jnp.ones((len(label), 1, *label.shape[1:])))
        spread = jnp.concatenate(spread, 1)
        there = jax.nn.one_hot(label, classes + 1)
        return total + einsum_float32("blyx,byxk->blk", spread, there), None

    counts = [of_module.shape[1] for of_module in maps.values()]
    start = jnp.zeros((len(sizes), sum(counts) + 1, classes + 1))
    found, _ = jax.lax.scan(one, start, (labels, *downs))

    front = jnp.asarray(foreground_of(class_names), jnp.int32)
    result = {}
    first = 0
    for prefix, count in zip(
        [*(f"{name}/" for name in maps), ""], [*counts, 1], strict=True
    ):
        mine = found[:, first : first + count]
        first += count
        total = jnp.sum(mine, -1)
        valid = batch["mask"][:, None] & (total >= LEAST_INSIDE)
        shares = mine / jnp.maximum(total, LEAST_INSIDE)[..., None]
        if not prefix:
            shares, valid = shares[:, 0], valid[:, 0]
        result[f"{prefix}classes"] = take_moments(shares, valid)
        result[f"{prefix}foreground"] = take_moments(shares[..., front].sum(-1), valid)
    return result


def spread_weights(
    own: jax.Array, valid: jax.Array, length: int, cells: int, extent: int
) -> jax.Array:
    """Returns what spreads the cells of an axis evenly over an example's own pixels.

    Args:
      own: int32, (batch,), length of each example in its own pixels, at least 1.
      valid: int32, (batch,), its length in the network's input, in pixels of that.
      length: of the output in pixels, at least `own`.
      cells: length of the map, of which cell j covers the input from j extent / cells.
      extent: of the network's input in pixels.

    Returns:
      float32, (batch, length, cells): the share of a cell that lies in a pixel.
    """
    edges = jnp.minimum(jnp.arange(length + 1) / own[:, None], 1.0)
    edges = edges * (valid * cells / extent)[:, None]
    begun = jnp.clip(edges[..., None] - jnp.arange(cells), 0, 1)
    return begun[:, 1:] - begun[:, :-1]
