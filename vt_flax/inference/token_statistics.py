"""Token statistics: what the tokens of a network attend to, over a whole split.

For the attention map A of a token (the mean of its heads) over n cells:

- relative entropy, -sum A log A / log n: 0 for a single cell, 1 for a uniform map;
- overlap with another token's map B, sum min(A, B): 0 if disjoint, 1 if equal;
- where there are masks, the share of A on the pixels of each class.

An example may fill only part of the network's input, from the upper left corner. Maps
are cropped to it and renormalized first. The paper prints no such statistics.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import entr
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vt_flax.data import augment
from vt_flax.data.augment.scaled import eval_canvas, eval_inputs, input_size
from vt_flax.data.masks import IGNORE
from vt_flax.errors import UserError
from vt_flax.inference.token_maps import module_coefficients, module_shapes
from vt_flax.parallel.mesh import on_devices_of, replicated
from vt_flax.training.evaluation import split_totals
from vt_flax.training.moments import Moments, take_moments
from vt_flax.training.run import Run, model_for
from vt_flax.training.tasks import Task, task_of
from vt_flax.training.tasks.segmentation import Segmentation

Report = dict[str, Any]
# By module: heads, tokens, height and width of its attention maps.
Shapes = Mapping[str, tuple[int, ...]]

# Names of classes that are not foreground, in lower case.
BACKGROUND = ("background", "void", "unlabeled", "unlabelled", "ignore", "ignored")
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
    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), images)
    shapes = module_shapes(model, variables, size)
    if not shapes:
        raise UserError(f"{option}: {config.model.name} has no token coefficients")
    return shapes


def measure(run: Run, weights: tuple[Any, Any], shapes: Shapes) -> Report:
    """Returns the token statistics of the evaluation split; all processes must call it.

    Args:
      run: see `run.prepare`.
      weights: parameters and batch statistics.
      shapes: see `find_modules`.

    Returns:
      A dictionary for `tokens.json`, see docs/tokens.md. All values are fractions.

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
    notes = []
    if names:
        *area, unlabeled = totals["area"].mean.tolist()
        foreground = foreground_classes(names)
        front = _mean_std(totals["foreground_area"])
        report["foreground"] = {
            "classes": [names[i] for i in foreground],
            "area": front,
        }
        report["area"] = dict(zip(names, area, strict=True))
        report["unlabeled_area"] = unlabeled
        notes.append(f"foreground is {front['mean']:.1%} of the pixels")
        if len(foreground) == len(names):
            notes.append(
                "no class is named background: all labeled pixels are foreground"
            )
    else:
        notes.append(f"{run.eval_source.name} has no masks: no foreground or classes")
    report["modules"] = [
        _module_report(name, shape, totals, run.model.vt.tokens, names)
        for name, shape in shapes.items()
    ]
    return report | {"notes": notes}


def _module_report(
    name: str,
    shape: tuple[int, ...],
    totals: Mapping[str, Moments],
    tokens: int,
    class_names: Sequence[str],
) -> Report:
    heads, count, height, width = shape
    rows = []
    for i in range(count):
        # Half replacement appends the new tokens to the kept ones.
        row = {"token": tokens - count + i}
        for key in ("relative_entropy", "overlap"):
            row[key] = _mean_std(totals[f"{name}/{key}"], i)
        if heads > 1:
            entropies = totals[f"{name}/head_entropy"]
            row["head_entropy"] = [
                _mean_std(entropies, (head, i)) for head in range(heads)
            ]
        if class_names:
            *shares, unlabeled = totals[f"{name}/classes"].mean[i].tolist()
            row["foreground"] = _mean_std(totals[f"{name}/foreground"], i)
            row["classes"] = dict(zip(class_names, shares, strict=True))
            row["unlabeled"] = unlabeled
        rows.append(row)
    size = {"heads": heads, "height": height, "width": width}
    return {"module": name, **size, "tokens": rows}


def _mean_std(moments: Moments, index: Any = ()) -> dict[str, float | None]:
    """Returns mean and standard deviation over the examples; None without examples."""
    known = bool(moments.count[index])
    return {
        "mean": float(moments.mean[index]) if known else None,
        "std": float(moments.std[index]) if known else None,
    }


def table_rows(report: Report) -> list[dict[str, Any]]:
    """Returns a row for each token, in percent."""
    rows = []
    for module in report["modules"]:
        for token in module["tokens"]:
            heads = [head["mean"] for head in token.get("head_entropy", ())]
            heads = [100 * mean for mean in heads if mean is not None]
            row = {
                "module": module["module"],
                "map": f"{module['height']} x {module['width']}",
                "token": str(token["token"]),
                **_percent("entropy", token["relative_entropy"]),
                "heads": f"{min(heads):.1f} to {max(heads):.1f}" if heads else "-",
                **_percent("overlap", token["overlap"]),
            }
            if "area" in report:
                ratios = {
                    name: token["classes"][name] / area
                    for name, area in report["area"].items()
                    if area
                }
                favored = max(ratios, key=ratios.get)
                row |= _percent("foreground", token["foreground"])
                row |= {"favors": favored, "times its area": round(ratios[favored], 2)}
            rows.append(row)
    return rows


def _percent(name: str, figure: dict[str, float | None]) -> dict[str, float | None]:
    mean, std = (
        None if value is None else round(100 * value, 1) for value in figure.values()
    )
    return {f"{name}, %": mean, f"± {name}": std}


def title(report: Report) -> str:
    """Returns one line on network, dataset, step and number of examples."""
    skipped = f", {report['skipped']:,} skipped" if report["skipped"] else ""
    return (
        f"Tokens of {report['network']} on {report['dataset']}, step "
        f"{report['step']:,}, {report['weights']} weights: {report['examples']:,} "
        f"examples{skipped}"
    )


def foreground_classes(class_names: Sequence[str]) -> list[int]:
    """Returns the indices of the classes that are foreground."""
    return [i for i, name in enumerate(class_names) if name.lower() not in BACKGROUND]


def make_token_step(
    model: nn.Module, task: Task, mesh: Mesh
) -> Callable[[Any, Any, dict], dict[str, Any]]:
    """Returns `token_step(params, batch_stats, batch) -> counts`.

    The counts are `Moments` over the examples: see `attention_statistics` and, for
    segmentation, `class_statistics`; and `examples`, `skipped` and `request` as in
    `step.compile_eval_step`. Segmentation is run at scale 1, not mirrored.
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
        shape = inputs.shape[1:3]
        counts = {}
        for name, per_head in maps.items():
            figures = attention_statistics(per_head, lengths, shape, real)
            if segments:
                mean = per_head.mean(1)
                figures |= class_statistics(
                    mean, batch, lengths, shape, task.class_names
                )
                # Of the pixels, whatever the module.
                for key in ("area", "foreground_area"):
                    counts[key] = figures.pop(key)
            counts |= {f"{name}/{key}": value for key, value in figures.items()}
        return {
            **counts,
            "examples": jnp.sum(real, dtype=jnp.int32),
            "skipped": jnp.sum(batch["bad"], dtype=jnp.int32),
        }

    return token_step


def attention_statistics(
    maps: jax.Array, lengths: jax.Array, shape: tuple[int, int], real: jax.Array
) -> dict[str, Moments]:
    """Returns the moments of a module's attention maps over a batch.

    Args:
      maps: (batch, heads, tokens, h, w), each with sum 1.
      lengths: int32 (batch, 2), height and width of each example in the input.
      shape: height and width of the input.
      real: bool (batch,), False for padding examples.

    Returns:
      `relative_entropy` (tokens,); `overlap` (tokens,), the mean over the module's
      other tokens; with several heads `head_entropy` (heads, tokens), relative too.
    """
    mean, valid, cells = crop_maps(maps.mean(1), lengths, shape)
    valid &= real[:, None]
    result = {"relative_entropy": _relative_entropy(mean, valid, cells)}
    if maps.shape[1] > 1:
        per_head, known, _ = crop_maps(maps, lengths, shape)
        known &= real[:, None, None]
        result["head_entropy"] = _relative_entropy(per_head, known, cells)
    overlap = jnp.sum(jnp.minimum(mean[:, :, None], mean[:, None]), (-2, -1))
    others = valid[:, None] & ~jnp.eye(mean.shape[1], dtype=bool)
    count = jnp.sum(others, -1)
    total = jnp.sum(jnp.where(others, overlap, 0.0), -1)
    overlap = total / jnp.maximum(count, 1)
    result["overlap"] = take_moments(overlap, valid & (count > 0))
    return result


def crop_maps(
    maps: jax.Array, lengths: jax.Array, shape: tuple[int, int]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Crops maps (batch, ..., h, w) to the examples and renormalizes them.

    Returns:
      The maps, with sum 1; bool (batch, ...), False for those with less than MIN_MASS
      on the example; int32 (batch,), number of cells that the example covers at least
      in part.
    """
    coverage = []
    for axis in range(2):
        cells = maps.shape[axis - 2]
        # In integers: a cell that only touches the example is not covered.
        begin = jnp.arange(cells) * shape[axis]
        pixels = jnp.clip(lengths[:, axis, None] * cells - begin, 0, shape[axis])
        coverage.append(pixels / shape[axis])
    area = coverage[0][:, :, None] * coverage[1][:, None]
    covered = jnp.sum(area > 0, (1, 2))
    area = jnp.expand_dims(area, tuple(range(1, maps.ndim - 2)))
    maps = maps * area
    mass = jnp.sum(maps, (-2, -1))
    valid = mass >= MIN_MASS
    return maps / jnp.where(valid, mass, 1.0)[..., None, None], valid, covered


def _relative_entropy(maps: jax.Array, valid: jax.Array, cells: jax.Array) -> Moments:
    entropy = jnp.sum(entr(maps), (-2, -1))
    # The entropy of a single cell is 0, and so is its maximum.
    cells = jnp.expand_dims(cells, tuple(range(1, entropy.ndim)))
    maximum = jnp.log(jnp.maximum(cells, 2).astype(jnp.float32))
    return take_moments(entropy / maximum, valid & (cells > 1))


def class_statistics(
    maps: jax.Array,
    batch: Mapping[str, jax.Array],
    lengths: jax.Array,
    shape: tuple[int, int],
    class_names: Sequence[str],
) -> dict[str, Moments]:
    """Returns the moments of the shares of attention maps on each class over a batch.

    The coefficient of a cell is distributed evenly over the pixels with their centers
    in it.

    Args:
      maps: (batch, tokens, h, w).
      batch: `label` uint8 (batch, H, W), IGNORE where there is none; `size` int32
        (batch, 2), height and width of each example in its own pixels; `mask` bool
        (batch,), False for padding examples.
      lengths: see `attention_statistics`.
      shape: see `attention_statistics`.
      class_names: of the dataset.

    Returns:
      `classes` (tokens, classes + 1), the last without a label, with sum 1;
      `foreground` (tokens,); and of all pixels `area` (classes + 1,),
      `foreground_area` ().
    """
    counts = class_counts(
        batch["label"], batch["size"], lengths, shape, maps.shape[-2:], len(class_names)
    )
    fractions = counts / jnp.maximum(jnp.sum(counts, -1, keepdims=True), 1)
    maps, valid, _ = crop_maps(maps, lengths, shape)
    shares = jnp.einsum("blhw,bhwk->blk", maps, fractions, precision="highest")
    total = jnp.sum(shares, -1, keepdims=True)
    valid &= batch["mask"][:, None] & (total[..., 0] >= MIN_MASS)
    shares /= jnp.maximum(total, MIN_MASS)
    pixels = jnp.sum(counts, (1, 2))
    area = pixels / jnp.maximum(jnp.sum(pixels, -1, keepdims=True), 1)
    foreground = np.asarray(foreground_classes(class_names), int)
    return {
        "classes": take_moments(shares, valid),
        "foreground": take_moments(shares[..., foreground].sum(-1), valid),
        "area": take_moments(area, batch["mask"]),
        "foreground_area": take_moments(area[..., foreground].sum(-1), batch["mask"]),
    }


def class_counts(
    labels: jax.Array,
    sizes: jax.Array,
    lengths: jax.Array,
    shape: tuple[int, int],
    cells: tuple[int, int],
    num_classes: int,
) -> jax.Array:
    """Counts the pixels of each class in each cell: (batch, h, w, classes + 1).

    See `class_statistics`. The last class is that of pixels without a label.
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
