"""Which of several crops is taken: the first without too much of any one class."""

import jax
import jax.numpy as jnp

from vt_flax.data.masks import IGNORE


def first_mixed(
    labels: jax.Array, rows: jax.Array, columns: jax.Array, most: float
) -> jax.Array:
    """Returns the first crop without a class of more than a share of what is labeled.

    Args:
      labels: uint8, (batch, H, W).
      rows: float32, (batch, crops, H): how many of a crop's rows come from each row.
      columns: float32, (batch, crops, W), likewise.
      most: the share that one class may have, up to 1.

    Returns:
      int32, (batch,): an index of the crops; the last where none will do. One without
      a label does not.
    """
    labeled, largest = count_largest(labels, rows, columns, most)
    # Both are whole numbers below 2^24, exact in float32.
    mixed = (largest <= most * labeled) & (labeled > 0)
    last = rows.shape[1] - 1
    return jnp.where(mixed.any(1), jnp.argmax(mixed, 1), last).astype(jnp.int32)


def count_largest(
    labels: jax.Array, rows: jax.Array, columns: jax.Array, most: float
) -> tuple[jax.Array, jax.Array]:
    """Counts, in each crop, the labeled pixels and those of the class to be judged.

    A count of the crop's pixels in which something holds is a product of its rows, a
    plane of the mask that is 1 where it holds, and its columns: 2.6 M multiply-adds for
    10 crops of a mask of 512 x 512. With a plane for each of COCO's 171 classes, 0.45 G
    and the mask read as often. But only a class with more than half of the pixels can
    have more than a share of a half or above, and then each bit of its number is the
    bit that most pixels have: eight planes name it, and one counts it.

    Returns:
      float32, (batch, crops): labeled pixels; and of the class that has more than
      `most` of them, if one has. Otherwise of any class, or 0.
    """

    def count(plane: jax.Array) -> jax.Array:
        # Rows may come from one often: 300 is no number in bfloat16.
        plane = jnp.einsum(
            "bky,byx->bkx",
            rows,
            plane.astype(jnp.float32),
            precision=jax.lax.Precision.HIGHEST,
        )
        return (plane * columns).sum(-1)

    known = labels != IGNORE
    labeled = count(known)
    if most < 0.5:
        # Several may have more: count all of them.
        def larger(largest: jax.Array, kind: jax.Array) -> tuple[jax.Array, None]:
            return jnp.maximum(largest, count(labels == kind)), None

        kinds = jnp.arange(IGNORE, dtype=jnp.uint8)
        return labeled, jax.lax.scan(larger, jnp.zeros_like(labeled), kinds)[0]
    kind = jnp.zeros(labeled.shape, jnp.int32)
    for bit in range(8):
        ones = count(known & (labels >> bit & 1 == 1))
        kind += (2 * ones > labeled).astype(jnp.int32) << bit
    planes = labels[:, None] == kind[:, :, None, None]
    planes = (planes & known[:, None]).astype(jnp.float32)
    largest = jnp.einsum(
        "bky,bkyx->bkx", rows, planes, precision=jax.lax.Precision.HIGHEST
    )
    return labeled, (largest * columns).sum(-1)
