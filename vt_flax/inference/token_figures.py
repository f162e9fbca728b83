"""What tokens look at, in figures: taken inside a step, of every example of a split.

The paper shows coefficient maps in pictures and gives no figures of them; what is
measured here, and how, is this package's own choice.

An example may fill only a part of the network's input. Its share of each cell of a map
is known, and a map is cut to it: what lies beside the example is told, and the rest is
made to sum to 1 again. Of a cut map A, whose cells p number n:

- entropy, -sum_p A_p log A_p, in nats, from 0 (one cell) to log n (all alike); and that
  over log n, by which maps of other resolutions can be compared;
- the overlap of two, sum_p min(A_p, B_p): the share of their coefficients that both
  have in the same cells, from 0 to 1;
- the centre of mass, each coordinate in shares of the example's side.

Of several heads a token's map is the mean, as in pictures.
"""

import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.scipy.special import entr
from jax.sharding import Mesh

from vt_flax.data import augment
from vt_flax.data.augment.scaled import eval_inputs
from vt_flax.inference.token_classes import LEAST_INSIDE, class_figures
from vt_flax.inference.token_maps import module_coefficients
from vt_flax.parallel.mesh import on_devices_of
from vt_flax.training.moments import Moments, take_moments
from vt_flax.training.tasks import Task
from vt_flax.training.tasks.segmentation import Segmentation

Places = list[tuple[str, int]]


class Cut(NamedTuple):
    """Maps cut to the examples.

    Attributes:
      maps: (batch, ..., h, w), sums 1; 0 where next to nothing lies on the example.
      inside: (batch, ...), how much of the map lies on the example.
      valid: bool, (batch, ...), whether there is an example and anything on it.
      cells: int32, (batch,), cells that the example has a part of.
      centres: (batch, ..., 2), of mass, y and x.
    """

    maps: jax.Array
    inside: jax.Array
    valid: jax.Array
    cells: jax.Array
    centres: jax.Array


def make_token_step(
    model: nn.Module, task: Task, mesh: Mesh
) -> Callable[[Any, Any, dict], dict[str, Any]]:
    """Returns `token_step(params, batch_stats, batch) -> counts`.

    The counts are `Moments` over the examples by names such as `module2/entropy`: see
    `map_figures`, and for segmentation `class_figures`; and `examples`, `skipped` and
    `request` as in `step.compile_eval_step`. Segmentation's input is that at a scale of
    1, not mirrored, whatever its evaluation averages.

    Args:
      model: a network with token coefficients.
      task: what it is trained for.
      mesh: the devices.
    """
    tokens = model.vt.tokens
    segments = isinstance(task, Segmentation)

    def token_step(params: Any, batch_stats: Any, batch: dict) -> dict[str, Any]:
        images, real = batch["image"], batch["mask"]
        lengths = jnp.tile(jnp.asarray(images.shape[1:3]), (len(images), 1))
        if segments:
            images, lengths = eval_inputs(images, batch["size"], task.config)
        inputs = augment.normalize(images, task.config.data)
        with on_devices_of(mesh):
            variables = {"params": params, "batch_stats": batch_stats}
            maps = module_coefficients(model, variables, inputs)
        shape = inputs.shape[1:3]
        counts = map_figures(maps, lengths, shape, real, tokens)
        if segments:
            counts |= class_figures(
                {name: of_heads.mean(1) for name, of_heads in maps.items()},
                {**batch, "lengths": lengths},
                shape,
                task.class_names,
            )
        return {
            **counts,
            "examples": jnp.sum(real, dtype=jnp.int32),
            "skipped": jnp.sum(batch["bad"], dtype=jnp.int32),
            "request": jnp.max(batch["request"]),
        }

    return token_step


def map_figures(
    maps: Mapping[str, jax.Array],
    lengths: jax.Array,
    shape: tuple[int, int],
    real: jax.Array,
    tokens: int,
) -> dict[str, Moments]:
    """Takes the figures of a batch's maps.

    Args:
      maps: by module, in order, (batch, heads, L', h, w), sums 1.
      lengths: int32, (batch, 2): height and width of each example in the input, from
        its upper left corner.
      shape: height and width of the input.
      real: bool, (batch,), False for places that hold no example.
      tokens: L, which every module gives; it may extract fewer anew.

    Returns:
      For each module, after its name and `/`, over the examples: `entropy` and
      `entropy_share` (L',); with several heads `head_entropy` and `head_entropy_share`
      (heads, L'); `outside` (L',), the share of a map beside the example;
      `overlap` (), the mean of all pairs of different tokens of an example, if there
      are any. And of a module that comes after others, see `earlier_places`,
      `moved_overlap` (L, L'), of each earlier token and each new one; `moved_distance`
      (L',), between the centres of a new token and the one that it was.
    """
    found, cuts = {}, {}
    for name, of_heads in maps.items():
        cut = cuts[name] = cut_maps(of_heads.mean(1), lengths, shape, real)
        figures = _entropies(cut)
        if of_heads.shape[1] > 1:
            each = _entropies(cut_maps(of_heads, lengths, shape, real))
            figures |= {f"head_{key}": value for key, value in each.items()}
        # Rounded, a map may sum to a little more than 1.
        figures["outside"] = take_moments(jnp.maximum(1 - cut.inside, 0), real)
        count = of_heads.shape[2]
        if count > 1:
            overlap, valid = _overlaps(cut, cut)
            valid &= ~jnp.eye(count, dtype=bool)
            pairs = jnp.sum(valid, (1, 2))
            total = jnp.sum(jnp.where(valid, overlap, 0.0), (1, 2))
            figures["overlap"] = take_moments(total / jnp.maximum(pairs, 1), pairs > 0)
        found |= {f"{name}/{key}": value for key, value in figures.items()}
    counts = {name: of_heads.shape[2] for name, of_heads in maps.items()}
    for name, places in earlier_places(counts, tokens).items():
        before, after = _gathered(cuts, places), cuts[name]
        overlap, valid = _overlaps(before, after)
        found[f"{name}/moved_overlap"] = take_moments(overlap, valid)
        # New token i comes of the i-th of those that the module was given.
        own = jnp.arange(counts[name])
        apart = before.centres[:, own] - after.centres
        found[f"{name}/moved_distance"] = take_moments(
            jnp.linalg.norm(apart, axis=-1), valid[:, own, own]
        )
    return found


def earlier_places(counts: Mapping[str, int], tokens: int) -> dict[str, Places]:
    """Returns where each token was extracted that a later module is given.

    The first L' of them are those that the module extracts anew; half replacement keeps
    the others and puts the new ones behind them. A tokenizer that does not look at
    earlier tokens replaces them all, and only their numbers are the same. Levels of a
    pyramid stand side by side: none of their tokens goes to another.

    Args:
      counts: L' of each module with coefficients, in order.
      tokens: L.

    Returns:
      For each module that is given tokens with maps, L names of modules and rows of
      their maps.
    """
    now: list[tuple[str, int] | None] = [None] * tokens
    found = {}
    for name, count in counts.items():
        if not name.startswith("module"):
            continue
        if all(now):
            found[name] = now
        now = now[count:] + [(name, i) for i in range(count)]
    return found


def cut_maps(
    maps: jax.Array, lengths: jax.Array, shape: tuple[int, int], real: jax.Array
) -> Cut:
    """Cuts maps (batch, ..., h, w) to the examples; see `map_figures`."""
    between = maps.ndim - 3
    parts, cells, centres = [], [], []
    for axis in range(2):
        number = maps.shape[axis - 2]
        # In whole numbers: a cell beside the example has nothing of it.
        begin = jnp.arange(number) * shape[axis]
        part = jnp.clip(lengths[:, axis, None] * number - begin, 0, shape[axis])
        part = part / shape[axis]
        middle = jnp.arange(number) + part / 2
        own = jnp.maximum(jnp.sum(part, 1, keepdims=True), 1e-6)
        parts.append(part)
        cells.append(jnp.sum(part > 0, 1))
        centres.append(middle / own)
    area = parts[0][:, :, None] * parts[1][:, None]
    maps = maps * _spread(area, between)
    inside = jnp.sum(maps, (-2, -1))
    valid = _spread(real, between) & (inside >= LEAST_INSIDE)
    scale = jnp.where(valid, 1 / jnp.maximum(inside, LEAST_INSIDE), 0.0)
    maps = maps * scale[..., None, None]
    y = jnp.sum(jnp.sum(maps, -1) * _spread(centres[0], between), -1)
    x = jnp.sum(jnp.sum(maps, -2) * _spread(centres[1], between), -1)
    return Cut(maps, inside, valid, cells[0] * cells[1], jnp.stack([y, x], -1))


def _entropies(cut: Cut) -> dict[str, Moments]:
    entropy = jnp.sum(entr(cut.maps), (-2, -1))
    most = _spread(jnp.log(cut.cells.astype(jnp.float32)), entropy.ndim - 1)
    # Of a single cell there is no share.
    share = entropy / jnp.where(most > 0, most, 1.0)
    return {
        "entropy": take_moments(entropy, cut.valid),
        "entropy_share": take_moments(share, cut.valid & (most > 0)),
    }


def _overlaps(one: Cut, other: Cut) -> tuple[jax.Array, jax.Array]:
    """Returns the overlaps of two sets of maps, (batch, L, M), and which are valid."""
    chex.assert_equal_shape_suffix([one.maps, other.maps], 2)
    smaller = jnp.minimum(one.maps[:, :, None], other.maps[:, None])
    valid = one.valid[:, :, None] & other.valid[:, None]
    return jnp.sum(smaller, (-2, -1)), valid


def _gathered(cuts: Mapping[str, Cut], places: Places) -> Cut:
    """Returns the cut maps of some tokens of several modules side by side."""

    def gather(field: str) -> jax.Array:
        rows = [
            getattr(cuts[name], field)[:, jnp.asarray([row for _, row in group])]
            for name, group in itertools.groupby(places, lambda place: place[0])
        ]
        return jnp.concatenate(rows, 1)

    fields = {field: gather(field) for field in Cut._fields if field != "cells"}
    return Cut(**fields, cells=cuts[places[0][0]].cells)


def _spread(x: jax.Array, between: int) -> jax.Array:
    """Puts axes of length 1 behind the first."""
    return x.reshape(x.shape[:1] + (1,) * between + x.shape[1:])
