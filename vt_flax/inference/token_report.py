"""A report on what the tokens of a network do, over a whole split.

What is measured, and how, is said in `inference.token_figures` and, of classes, in
`inference.token_classes`. A spread is the standard deviation over the examples.
"""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vt_flax.data.augment.scaled import eval_canvas, input_size
from vt_flax.errors import UserError
from vt_flax.inference.token_classes import foreground_of
from vt_flax.inference.token_figures import make_token_step
from vt_flax.inference.token_maps import module_shapes
from vt_flax.inference.token_records import (
    Report,
    Shapes,
    class_record,
    module_record,
    move_records,
)
from vt_flax.parallel.mesh import replicated
from vt_flax.texts import json_text
from vt_flax.training.evaluation import split_totals
from vt_flax.training.requests import Requests
from vt_flax.training.run import Run, model_for
from vt_flax.training.tasks import task_of
from vt_flax.training.tasks.segmentation import Segmentation

# Whose queries are the tokens of the module before.
LOOK_BACK = ("dynamic", "recurrent")


def find_modules(
    config: ConfigDict, num_classes: int, option: str = "--tokens"
) -> dict[str, tuple[int, ...]]:
    """Returns which modules of a network have coefficients; the dataset is not needed.

    Args:
      config: a resolved configuration.
      num_classes: of the dataset.
      option: that needs them, for the message.

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
        raise UserError(f"{option}: {config.model.name} has no token coefficients")
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
    totals = split_totals(run, step, {"": weights}, Requests(run.mesh))[""]
    options = run.model.vt
    names = run.task.class_names if "classes" in totals else None
    moves = move_records(totals, shapes, options.tokens)
    notes = []
    if not names:
        notes.append(f"{run.eval_source.name} has no masks: nothing on foreground")
    elif len(foreground_of(names)) == len(names):
        notes.append("no class is called background: foreground is what is labeled")
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
        "classes": names and class_record(totals, names),
        "modules": [
            module_record(totals, name, shape, options.tokens, names)
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
    from vt_flax.viz.token_chart import draw_report

    files = [folder / "tokens.json", folder / "tokens.png"]
    files[0].write_text(json_text(report) + "\n")
    draw_report(files[1], report)
    return files
