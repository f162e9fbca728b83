"""Token statistics: what the tokens of a network attend to, over a whole split.

For the attention map A of a token (the mean of its heads) over n cells:

- relative entropy, -sum A log A / log n: 0 for a single cell, 1 for a uniform map;
- overlap with another token's map B, sum min(A, B): 0 if disjoint, 1 if equal;
- where there are masks, the share of A on the pixels of each class.

An example may fill only part of the network's input, from the upper left corner. Maps
are cropped to it and renormalized first. The paper prints no such statistics.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.scipy.special import entr
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vt_flax.data import augment
from vt_flax.data.augment.scaled import eval_canvas, eval_inputs, input_size
from vt_flax.data.masks import IGNORE
from vt_flax.errors import UserError
from vt_flax.inference.token_maps import module_coefficients, tokenizer_kinds
from vt_flax.parallel.mesh import on_devices_of, replicated
from vt_flax.training.evaluation import split_totals
from vt_flax.training.moments import Moments, take_moments
from vt_flax.training.run import Run, model_for
from vt_flax.training.tasks import Task, task_of
from vt_flax.training.tasks.segmentation import Segmentation

Report = dict[str, Any]
# Heads, tokens, height and width of attention maps, by module.
Shapes = Mapping[str, tuple[int, ...]]

# A token with less than this of its map on an example is left out of that example.
MIN_MASS = 1e-6


def find_modules(
    config: ConfigDict, num_classes: int, option: str = "--tokens"
) -> Shapes:
    """Returns the shapes of a network's attention maps in evaluation, by module.

    Only the configuration is needed, neither weights nor data.

    Raises:
      UserError: if the network has no token coefficients; names `option`.
    """
    model, task = model_for(config, num_classes), task_of(config)
    size = task.input_size(config)
    if task is Segmentation:
        size = input_size(eval_canvas(config), config, 1.0)

    def maps_of(images: jax.Array) -> dict[str, jax.Array]:
        variables = model.init(jax.random.key(0), images)
        return module_coefficients(model, variables, images)

    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    maps = jax.eval_shape(maps_of, images)
    if not maps:
        raise UserError(f"{option}: {config.model.name} has no token coefficients")
    # JAX sorts names as text, `module10` before `module2`.
    return {
        name: maps[name].shape[1:] for name in tokenizer_kinds(model) if name in maps
    }


def measure(run: Run, weights: tuple[Any, Any], shapes: Shapes) -> Report:
    """Returns the token statistics of the evaluation split; all processes must call it.

    Args:
      run: see `run.prepare`.
      weights: parameters and batch statistics.
      shapes: see `find_modules`.

    Returns:
      A dictionary for `tokens.json`, see docs/tokens.md. All values are fractions, and
      NaN where no example has the value.

    Raises:
      UserError: see `evaluation.split_totals`.
    """
    step = jax.jit(
        make_token_step(run.model, run.task, run.mesh),
        out_shardings=replicated(run.mesh),
    )
    totals = split_totals(run, step, {"": weights})[""]
    names = run.task.class_names if "area" in totals else ()
    report: Report = {"examples": totals["examples"], "skipped": totals["skipped"]}
    if names:
        report["area"] = dict(zip(names, totals["area"].mean.tolist(), strict=True))
    report["modules"] = []
    for module, (heads, count, height, width) in shapes.items():
        tokens = []
        for i in range(count):
            # Half replacement appends the new tokens to the kept ones.
            token = {"token": run.model.vt.tokens - count + i}
            for key in ("relative_entropy", "overlap"):
                token[key] = _mean_and_std(totals[f"{module}/{key}"], i)
            if names:
                shares = totals[f"{module}/classes"].mean[i].tolist()
                token["classes"] = dict(zip(names, shares, strict=True))
            tokens.append(token)
        size = {"heads": heads, "height": height, "width": width}
        report["modules"].append({"module": module, **size, "tokens": tokens})
    return report


def _mean_and_std(moments: Moments, token: int) -> dict[str, float]:
    if not moments.count[token]:
        return {"mean": math.nan, "std": math.nan}
    return {"mean": float(moments.mean[token]), "std": float(moments.std[token])}


def table_rows(report: Report) -> list[dict[str, Any]]:
    """Returns a row for each token, in percent."""
    rows = []
    for module in report["modules"]:
        for token in module["tokens"]:
            row = {
                "module": module["module"],
                "map": f"{module['height']} x {module['width']}",
                "token": str(token["token"]),
            }
            for name, key in (("entropy", "relative_entropy"), ("overlap", "overlap")):
                row[f"{name}, %"] = round(100 * token[key]["mean"], 1)
                row[f"± {name}"] = round(100 * token[key]["std"], 1)
            if "area" in report:
                ratios = {
                    name: token["classes"][name] / area
                    for name, area in report["area"].items()
                    if area
                }
                favored = max(ratios, key=ratios.get)
                row |= {"favors": favored, "times its area": round(ratios[favored], 2)}
            rows.append(row)
    return rows


def title(report: Report) -> str:
    """Returns one line on network, dataset, step and number of examples."""
    skipped = f", {report['skipped']:,} skipped" if report["skipped"] else ""
    return (
        f"Tokens of {report['network']} on {report['dataset']}, step "
        f"{report['step']:,}, {report['weights']} weights: {report['examples']:,} "
        f"examples{skipped}"
    )


def make_token_step(
    model: nn.Module, task: Task, mesh: Mesh
) -> Callable[[Any, Any, dict], dict[str, Any]]:
    """Returns `token_step(params, batch_stats, batch) -> counts`.

    The counts are `Moments` over the examples: see `attention_statistics` and, for
    segmentation, `class_shares` and `area`, the fractions of the pixels in each class;
    and `examples` and `skipped` as in `step.compile_eval_step`. Segmentation
    is run at scale 1, not mirrored.
    """
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
        counts = {
            "examples": jnp.sum(real, dtype=jnp.int32),
            "skipped": jnp.sum(batch["bad"], dtype=jnp.int32),
        }
        for name, per_head in maps.items():
            mean, on_example, cells = crop_maps(
                per_head.mean(1), lengths, inputs.shape[1:3]
            )
            valid = on_example & real[:, None]
            figures = attention_statistics(mean, valid, cells)
            if segments:
                pixels = class_counts(
                    batch["label"],
                    batch["size"],
                    lengths,
                    inputs.shape[1:3],
                    mean.shape[2:],
                    len(task.class_names),
                )
                figures["classes"] = class_shares(mean, valid, pixels)
                # The same for every module.
                area = jnp.sum(pixels, (1, 2))
                area /= jnp.maximum(jnp.sum(area, -1, keepdims=True), 1)
                counts["area"] = take_moments(area[:, :-1], real)
            counts |= {f"{name}/{key}": value for key, value in figures.items()}
        return counts

    return token_step


def crop_maps(
    maps: jax.Array, lengths: jax.Array, shape: tuple[int, int]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Crops attention maps to the examples and renormalizes them.

    Args:
      maps: (batch, tokens, h, w), each with sum 1.
      lengths: int32 (batch, 2), height and width of each example in the input.
      shape: height and width of the input.

    Returns:
      The maps, with sum 1; bool (batch, tokens), False for those with less than
      MIN_MASS on the example; int32 (batch,), number of cells that the example covers
      at least in part.
    """
    coverage = []
    for axis in range(2):
        cells = maps.shape[axis - 2]
        # In integers: a cell that only touches the example is not covered.
        begin = jnp.arange(cells) * shape[axis]
        pixels = jnp.clip(lengths[:, axis, None] * cells - begin, 0, shape[axis])
        coverage.append(pixels / shape[axis])
    area = coverage[0][:, :, None] * coverage[1][:, None]
    maps = maps * area[:, None]
    mass = jnp.sum(maps, (-2, -1))
    valid = mass >= MIN_MASS
    maps /= jnp.where(valid, mass, 1.0)[..., None, None]
    return maps, valid, jnp.sum(area > 0, (1, 2))


def attention_statistics(
    maps: jax.Array, valid: jax.Array, cells: jax.Array
) -> dict[str, Moments]:
    """Returns the moments of a module's attention maps over a batch.

    Args:
      maps: (batch, tokens, h, w), cropped.
      valid: bool (batch, tokens), False for maps to leave out.
      cells: int32 (batch,), see `crop_maps`.

    Returns:
      `relative_entropy` (tokens,); `overlap` (tokens,), the mean over the module's
      other tokens.
    """
    # The entropy of a single cell is 0, and so is its maximum.
    maximum = jnp.log(jnp.maximum(cells, 2).astype(jnp.float32))[:, None]
    entropy = jnp.sum(entr(maps), (-2, -1)) / maximum
    overlap = jnp.sum(jnp.minimum(maps[:, :, None], maps[:, None]), (-2, -1))
    others = valid[:, None] & ~jnp.eye(maps.shape[1], dtype=bool)
    count = jnp.sum(others, -1)
    total = jnp.sum(jnp.where(others, overlap, 0.0), -1)
    return {
        "relative_entropy": take_moments(entropy, valid & (cells > 1)[:, None]),
        "overlap": take_moments(total / jnp.maximum(count, 1), valid & (count > 0)),
    }


def class_counts(
    labels: jax.Array,
    sizes: jax.Array,
    lengths: jax.Array,
    shape: tuple[int, int],
    cells: tuple[int, int],
    num_classes: int,
) -> jax.Array:
    """Counts the pixels of each class with their centers in each cell of a map.

    Args:
      labels: uint8 (batch, H, W), IGNORE where there is none.
      sizes: int32 (batch, 2), height and width of each example in its own pixels.
      lengths: int32 (batch, 2), its height and width in the network's input.
      shape: height and width of the input.
      cells: height and width of the map.
      num_classes: number of classes.

    Returns:
      (batch, h, w, classes + 1); the last class is that of pixels without a label.
    """

    def count(label: jax.Array, size: jax.Array, length: jax.Array) -> jax.Array:
        y, x = (jnp.arange(side) for side in label.shape)
        scale = length * jnp.asarray(cells) / jnp.asarray(shape) / jnp.maximum(size, 1)
        rows = ((y + 0.5) * scale[0]).astype(jnp.int32)
        columns = ((x + 0.5) * scale[1]).astype(jnp.int32)
        label = jnp.where(label == IGNORE, num_classes, label.astype(jnp.int32))
        inside = (y < size[0])[:, None] & (x < size[1])
        # An index out of bounds is dropped.
        label = jnp.where(inside, label, num_classes + 1)
        zeros = jnp.zeros((*cells, num_classes + 1))
        return zeros.at[rows[:, None], columns, label].add(1, mode="drop")

    return jax.vmap(count)(labels, sizes, lengths)


def class_shares(maps: jax.Array, valid: jax.Array, pixels: jax.Array) -> Moments:
    """Returns the moments of the share of attention maps on each class over a batch.

    The coefficient of a cell is distributed evenly over the pixels in it.

    Args:
      maps: (batch, tokens, h, w), cropped.
      valid: bool (batch, tokens), False for maps to leave out.
      pixels: see `class_counts`.

    Returns:
      Moments of (tokens, classes); the rest of each map is on pixels without a label.
    """
    fractions = pixels / jnp.maximum(jnp.sum(pixels, -1, keepdims=True), 1)
    shares = jnp.einsum("blhw,bhwk->blk", maps, fractions, precision="highest")
    # Cells at the border of an example may have no pixel's center in them.
    total = jnp.sum(shares, -1, keepdims=True)
    valid &= total[..., 0] >= MIN_MASS
    return take_moments((shares / jnp.maximum(total, MIN_MASS))[..., :-1], valid)
