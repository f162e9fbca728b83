"""A report on what the tokens of a network do, over a whole split.

What is measured, and how, is said in `inference.token_figures` and, of classes, in
`inference.token_classes`. A spread is the standard deviation over the examples.
"""

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from scipy.optimize import linear_sum_assignment
from scipy.special import rel_entr

from vt_flax.data.augment.scaled import eval_canvas, input_size
from vt_flax.errors import UserError
from vt_flax.inference.token_classes import foreground_of
from vt_flax.inference.token_figures import earlier_places, make_token_step
from vt_flax.inference.token_maps import module_shapes
from vt_flax.parallel.mesh import replicated
from vt_flax.training.evaluation import split_totals
from vt_flax.training.moments import Moments
from vt_flax.training.requests import Requests
from vt_flax.training.run import Run, model_for
from vt_flax.training.tasks import task_of
from vt_flax.training.tasks.segmentation import Segmentation

Report = dict[str, Any]
Shapes = Mapping[str, tuple[int, ...]]
# Whose queries are the tokens of the module before.
LOOK_BACK = ("dynamic", "recurrent")


def find_modules(config: ConfigDict, num_classes: int) -> dict[str, tuple[int, ...]]:
    """Returns which modules of a network have coefficients; the dataset is not needed.

    Args:
      config: a resolved configuration.
      num_classes: of the dataset.

    Returns:
      By module, in order, heads, tokens, height and width of its maps in evaluation.

    Raises:
      UserError: if there are none.
    """
    model, kind = model_for(config, num_classes), task_of(config)
    size = kind.input_size(config)
    if kind is Segmentation:
        size = input_size(eval_canvas(config), config, 1.0)
    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), images)
    shapes = module_shapes(model, variables, size)
    if not shapes:
        raise UserError(f"--tokens: {config.model.name} has no token coefficients")
    return shapes


def measure(run: Run, weights: tuple[Any, Any], shapes: Shapes) -> Report:
    """Goes through the evaluation split once, and reports what the tokens did.

    Args:
      run: see `run.prepare`. Of several processes all must do this.
      weights: parameters and batch statistics.
      shapes: see `find_modules`.

    Returns:
      `examples`, `skipped`; `classes`, None without masks; `modules`, `moves`, lists;
      `notes`, lines of what is not there, and why. A figure with a spread is `mean` and
      `spread`, None where no example has any; all shares are from 0 to 1.

    Raises:
      UserError: see `evaluation.split_totals`.
    """
    step = jax.jit(
        make_token_step(run.model, run.task, run.mesh),
        out_shardings=replicated(run.mesh),
    )
    totals = split_totals(
        step,
        {"": weights},
        run.task,
        run.eval_source,
        run.config,
        Requests(run.mesh),
    )[""]
    options = run.model.vt_options()
    names = run.task.class_names if "classes" in totals else None
    moves = _moves(totals, shapes, options.tokens)
    notes = []
    if not names:
        notes.append(f"{run.eval_source.name} has no masks: nothing on foreground")
    elif len(foreground_of(names)) == len(names):
        notes.append("no class is called background: foreground is what is labelled")
    if moves and options.tokenizer not in LOOK_BACK:
        notes.append(
            f"{options.tokenizer} tokenizers do not look at earlier tokens: only the "
            "numbers of those compared are the same"
        )
    if not moves:
        notes.append("no token is extracted anew by a later module: nothing moves")
    return {
        "examples": totals["examples"],
        "skipped": totals["skipped"],
        "classes": names and _classes(totals, names),
        "modules": [
            _module(totals, name, shape, options.tokens, names)
            for name, shape in shapes.items()
        ],
        "moves": moves,
        "notes": notes,
    }


def write_report(folder: pathlib.Path, report: Report) -> list[pathlib.Path]:
    """Writes `tokens.json` and `tokens.png` to a folder.

    Returns:
      What was written.

    Raises:
      OSError: if it cannot be.
    """
    # matplotlib takes a while to import.
    from vt_flax.analysis.token_chart import draw_report

    files = [folder / "tokens.json", folder / "tokens.png"]
    files[0].write_text(json.dumps(report, indent=2) + "\n")
    draw_report(files[1], report)
    return files


def information(shares: np.ndarray) -> tuple[float, float]:
    """Returns what the token tells of the class: the mutual information of both.

    An example is drawn, a token, a pixel by its coefficients in that example, among
    those with a label. I(token; class) = sum p(t, c) log(p(t, c) / (p(t) p(c))), from 0
    where all tokens look at the same classes alike.

    Args:
      shares: (tokens, classes), means over the examples, without those unlabelled.

    Returns:
      It in nats, and as a share of the entropy of the class, which is the most that it
      can be; 0 where there is but one class.
    """
    joint = shares / shares.sum()
    apart = joint.sum(1, keepdims=True) * joint.sum(0)
    found = rel_entr(joint, apart).sum()
    classes = joint.sum(0)
    most = -sum(p * math.log(p) for p in classes.tolist() if p)
    return float(found), float(found / most) if most else 0.0


def _figure(moments: Moments, place: Any = ()) -> dict[str, float | None]:
    known = bool(moments.count[place])
    return {
        "mean": float(moments.mean[place]) if known else None,
        "spread": float(moments.spread[place]) if known else None,
    }


def _mean(moments: Moments) -> float | None:
    """Returns the mean of several quantities' means."""
    known = moments.count > 0
    return float(moments.mean[known].mean()) if known.any() else None


def _classes(totals: Mapping[str, Any], names: tuple[str, ...]) -> Report:
    *area, unlabelled = totals["classes"].mean.tolist()
    return {
        "foreground": [names[i] for i in foreground_of(names)],
        "foreground_area": _figure(totals["foreground"]),
        "area": dict(zip(names, area, strict=True)),
        "unlabelled": unlabelled,
    }


def _module(
    totals: Mapping[str, Any],
    name: str,
    shape: tuple[int, ...],
    tokens: int,
    names: tuple[str, ...] | None,
) -> Report:
    heads, count, height, width = shape
    mine = _of(totals, name)
    report = {
        "module": name,
        "heads": heads,
        "height": height,
        "width": width,
        "entropy": _mean(mine["entropy"]),
        "entropy_share": _mean(mine["entropy_share"]),
        "outside": _mean(mine["outside"]),
        "overlap": _figure(mine["overlap"]) if "overlap" in mine else None,
    }
    if names:
        report["foreground"] = _mean(mine["foreground"])
        labelled = mine["classes"].mean[:, :-1]
        nats, share = information(labelled) if labelled.any() else (None, None)
        report |= {"information": nats, "information_share": share}
    report["tokens"] = [
        # Half replacement puts its new tokens behind the kept ones.
        {"token": tokens - count + row, **_token(totals, mine, row, heads, names)}
        for row in range(count)
    ]
    return report


def _token(
    totals: Mapping[str, Any],
    mine: Mapping[str, Moments],
    row: int,
    heads: int,
    names: tuple[str, ...] | None,
) -> Report:
    report = {
        key: _figure(mine[key], row) for key in ("entropy", "entropy_share", "outside")
    }
    if names:
        *shares, unlabelled = mine["classes"].mean[row].tolist()
        area = totals["classes"].mean[:-1]
        times = np.where(area > 0, shares / np.maximum(area, 1e-12), 0.0)
        likes = int(times.argmax())
        report |= {
            "foreground": _figure(mine["foreground"], row),
            "classes": dict(zip(names, shares, strict=True)),
            "unlabelled": unlabelled,
            "likes": {"class": names[likes], "times_its_area": float(times[likes])},
        }
    if heads > 1:
        report["heads"] = [
            {
                key: _figure(mine[f"head_{key}"], (head, row))
                for key in ("entropy", "entropy_share")
            }
            for head in range(heads)
        ]
    return report


def _moves(totals: Mapping[str, Any], shapes: Shapes, tokens: int) -> list[Report]:
    counts = {name: shape[1] for name, shape in shapes.items()}

    def place(name: str, row: int) -> Report:
        return {"module": name, "token": tokens - counts[name] + row}

    moves = []
    for name, places in earlier_places(counts, tokens).items():
        mine = _of(totals, name)
        overlap, distance = mine["moved_overlap"], mine["moved_distance"]
        # The earlier token for each new one by which they overlap most in all, no
        # earlier one twice.
        earlier, new = linear_sum_assignment(overlap.mean, maximize=True)
        matched = dict(zip(new.tolist(), earlier.tolist(), strict=True))
        own = range(counts[name])
        moves.append(
            {
                "module": name,
                "overlap": _mean(Moments(*(x[own, own] for x in overlap))),
                "matched_overlap": _mean(Moments(*(x[earlier, new] for x in overlap))),
                "any_overlap": _mean(overlap),
                "distance": _mean(distance),
                "kept": sum(matched[row] == row for row in own) / len(own),
                "tokens": [
                    {
                        **place(name, row),
                        "was": place(*places[row]),
                        "overlap": _figure(overlap, (row, row)),
                        "distance": _figure(distance, row),
                        "matches": place(*places[matched[row]]),
                        "matched_overlap": _figure(overlap, (matched[row], row)),
                    }
                    for row in own
                ],
            }
        )
    return moves


def _of(totals: Mapping[str, Any], module: str) -> dict[str, Moments]:
    prefix = f"{module}/"
    return {
        key.removeprefix(prefix): value
        for key, value in totals.items()
        if key.startswith(prefix)
    }
