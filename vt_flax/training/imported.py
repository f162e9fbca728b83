"""Weights that others have trained, as a workdir that training starts from."""

import json
import math
import os
import pathlib
import re
import shutil
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from ml_collections import ConfigDict

from vt_flax.data.imagenet import CLASSES, class_names
from vt_flax.errors import UserError
from vt_flax.models import create_model, model_task
from vt_flax.paths import writing
from vt_flax.training.checkpoint import Checkpoints
from vt_flax.training.config import resolve
from vt_flax.training.optimizer import make_optimizer
from vt_flax.training.state import TrainState, create_state
from vt_flax.training.tasks import task_of
from vt_flax.training.weights import PARTS
from vt_flax.training.workdir import RunRecord
from vt_flax.weights.files import Array, check_sum, read_arrays
from vt_flax.weights.finding import Found, find_resnet
from vt_flax.weights.fitting import Path, fit
from vt_flax.weights.names import COUNTER


def import_weights(
    file: pathlib.Path,
    name: str,
    out: pathlib.Path,
    num_classes: int = 0,
    options: dict[str, Any] | None = None,
    section: str = "",
) -> tuple[list[dict[str, Any]], list[str]]:
    """Reads PyTorch weights of a ResNet or an SE-ResNet into a new workdir.

    Args:
      file: see `weights.files.read_arrays`.
      name: name of the model, such as `se_resnet50`.
      out: the workdir. With the file's own head it is that of a run on ImageNet, for
        `evaluate` and `predict` too; with a fresh one it is for `init_from` alone.
      num_classes: number of classes of the model; 0 takes the file's head. With another
        number than the file's the head is initialized afresh.
      options: options of the model.
      section: which ResNet of the file, if there are several: see `find_resnet`.

    Returns:
      A row for each module of the model, and for each unused part of the file: `name`,
      `arrays`, `numbers`, `from`; and lines to print below them.

    Raises:
      UserError: for whatever does not fit; nothing is written then.
    """
    options = options or {}
    model_task(name)
    if not re.fullmatch(r"(se_)?resnet\d+", name):
        raise UserError(
            f"--model {name}: files are of ResNets and SE-ResNets; import one, and "
            f"start {name} from it by --config.init_from"
        )
    with writing(f"--out {out}"):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"--out {out}: exists and is not empty; name a new folder")
    arrays = read_arrays(file)
    digest = check_sum(file)
    found = find_resnet(file, arrays, section, num_classes)
    classes = num_classes or found.classes
    if not classes:
        raise UserError(
            f"{file} has no head, a single linear map over the ResNet: add "
            "--num_classes N, for a fresh one"
        )
    model = create_model(name, num_classes=classes, **options)
    config = _config(name, classes, options)

    def create() -> TrainState:
        optimizer = make_optimizer(config.optimizer, optax.constant_schedule(0.0))
        size = task_of(config).input_size(config)
        return create_state(model, optimizer, size, config.seed, ema=False)

    shapes = {path: x.shape for path, x in _flat(jax.eval_shape(create)).items()}
    loaded = fit(file, arrays, found.names, name, shapes)
    rows = _rows(loaded, shapes, found, arrays)
    record = {
        "file": file.name,
        "sha256": digest,
        "section": found.section,
        "prefix": found.prefix,
        "head": found.head,
        "model": name,
        "options": options,
        "arrays": rows,
    }
    run = None
    if found.head:
        names = class_names() if classes == CLASSES else map(str, range(classes))
        run = RunRecord(config.to_dict(), list(names))
    with writing(f"--out {out}"):
        _write(out.resolve(), _state(create, loaded), run, record)

    lines = [
        f"Took the ResNet in section {found.section or '(top level)'}, under prefix "
        f"{found.prefix or '(none)'}, with head {found.head or '(none)'}."
    ]
    if found.others:
        lines[0] += f" The file has others: --section {' or '.join(found.others)}."
    lines.append(f"Wrote {out}; training starts from it by --config.init_from={out}")
    if found.head:
        lines.append(f"As it is: vt_flax predict --workdir {out} IMAGE...")
    return rows, lines


def _config(name: str, classes: int, options: dict[str, Any]) -> ConfigDict:
    """Returns the configuration of a run on ImageNet that has not begun."""
    return resolve(
        ConfigDict(
            {
                "model": {"name": name, **options, "num_classes": classes},
                "data": {
                    "name": "imagenet2012",
                    "eval_split": "validation",
                    "image_size": 224,
                    "eval_resize": 256,
                    "train_crop": "random_resized",
                },
                # The state holds nothing but the weights.
                "optimizer": {"name": "sgd", "momentum": 0.0},
                "ema": {"decay": 0.0},
            }
        )
    )


def _flat(state: TrainState) -> dict[Path, Any]:
    """Returns parameters and batch statistics by path."""
    return traverse_util.flatten_dict({part: getattr(state, part) for part in PARTS})


def _state(create: Callable[[], TrainState], loaded: dict[Path, Any]) -> TrainState:
    """Returns the state at step 0 with the loaded weights, the others fresh."""
    state = jax.jit(create)()
    arrays = _flat(state) | {path: jnp.asarray(x) for path, x in loaded.items()}
    return state.replace(**traverse_util.unflatten_dict(arrays))


def _rows(
    loaded: dict[Path, Any],
    shapes: dict[Path, tuple[int, ...]],
    found: Found,
    arrays: dict[str, Array],
) -> list[dict[str, Any]]:
    """Returns rows as `import_weights` does."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}

    def add(name: str, source: str, shape: tuple[int, ...]) -> None:
        empty = {"name": name, "arrays": 0, "numbers": 0, "from": source}
        row = rows.setdefault((name, source), empty)
        row["arrays"] += 1
        row["numbers"] += math.prod(shape)

    order = ("stem", "stage2", "stage3", "stage4", "stage5", "head")
    for path in sorted(shapes, key=lambda path: order.index(path[1])):
        add(path[1], "the file" if path in loaded else "fresh", shapes[path])
    for key, array in arrays.items():
        if key not in found.names and not key.endswith(COUNTER):
            part, _, _ = key.removeprefix(f"{found.section}.").partition(".")
            add(part, "not used", array.shape)
    return list(rows.values())


def _write(
    out: pathlib.Path, state: TrainState, run: RunRecord | None, record: dict[str, Any]
) -> None:
    """Writes a workdir atomically."""
    partial = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        checkpoints = Checkpoints(partial)
        checkpoints.save(0, state)
        checkpoints.close()
        if run:
            run.write(partial)
        (partial / "imported.json").write_text(json.dumps(record, indent=2) + "\n")
        partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
