"""Weights that others have trained, as a workdir that training starts from."""

import dataclasses
import json
import math
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from ml_collections import ConfigDict

from vt_flax.data.imagenet import CLASSES, class_names
from vt_flax.errors import UserError, first_names
from vt_flax.models import create_model, model_task
from vt_flax.training.checkpoint import Checkpoints
from vt_flax.training.config import resolve
from vt_flax.training.optimizer import make_optimizer
from vt_flax.training.state import TrainState, create_state
from vt_flax.training.tasks import task_of
from vt_flax.training.weights import PARTS
from vt_flax.training.workdir import RunRecord
from vt_flax.weights.files import Array, check_sum, read_arrays
from vt_flax.weights.finding import Found, find_resnet
from vt_flax.weights.fitting import LoadReport, Path, check_function, fit
from vt_flax.weights.names import COUNTER

# Beside the checkpoint: from what it was made.
RECORD = "imported.json"


@dataclasses.dataclass(frozen=True)
class Imported:
    """Result of an import.

    Attributes:
      rows: a record for each part of the model, and for each part of the file that is
        not used: `name`, `arrays`, `numbers`, `from`.
      notes: lines for people.
    """

    rows: list[dict[str, Any]]
    notes: list[str]


def import_weights(
    file: pathlib.Path,
    name: str,
    out: pathlib.Path,
    num_classes: int = 0,
    options: dict[str, Any] | None = None,
    section: str = "",
) -> Imported:
    """Reads PyTorch weights of a ResNet or an SE-ResNet into a new workdir.

    Args:
      file: see `weights.files.read_arrays`.
      name: of the model: `resnet50`, `se_resnet50` and so on.
      out: the workdir. With the file's own head it is a run's like any other, on
        ImageNet, for `evaluate` and `predict`; with a fresh one it holds a checkpoint
        for `init_from` alone.
      num_classes: of the model; 0: as many as the file's head has. With any other
        number the head is initialized afresh.
      options: of the model.
      section: which ResNet of the file, if there are several: see `find_resnet`.

    Raises:
      UserError: for whatever does not fit; nothing is written then.
    """
    options = options or {}
    _check_model(name)
    _check_out(out)
    digest = check_sum(file)
    arrays = read_arrays(file)
    found = find_resnet(file, arrays, section, num_classes)
    classes = num_classes or found.classes
    if not classes:
        left = f" (not used: {first_names(found.left)})" if found.left else ""
        raise UserError(
            f"{file} has no head, a single linear map over the ResNet{left}: say "
            "--num_classes N, for a fresh one"
        )
    model = create_model(name, num_classes=classes, **options)
    differences = check_function(file, found.names.values(), model.variant)
    config = _config(name, classes, options)
    create = _creation(config, model)
    shapes = {
        path: array.shape for path, array in _flat(jax.eval_shape(create)).items()
    }
    report = fit(file, arrays, found.names, name, shapes, head=bool(found.head))
    rows = _rows(report, shapes, found, arrays)
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
    names = _class_names(classes) if found.head else ()
    _write(out, _state(create, report), config, names, record)
    return Imported(rows, [_summary(found), *differences, *_notes(out, found)])


def _check_model(name: str) -> None:
    model_task(name)
    if not re.fullmatch(r"(se_)?resnet\d+", name):
        raise UserError(
            f"--model {name}: files are of ResNets and SE-ResNets; import one, and "
            f"start {name} from it by --config.init_from"
        )


def _check_out(out: pathlib.Path) -> None:
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"--out {out}: something is there; choose a new folder")
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror or error}") from error


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
                # Without momentum and averages nothing is there beside the weights.
                "optimizer": {"name": "sgd", "momentum": 0.0},
                "ema": {"decay": 0.0},
            }
        )
    )


def _creation(config: ConfigDict, model: nn.Module) -> Callable[[], TrainState]:
    optimizer = make_optimizer(config.optimizer, optax.constant_schedule(0.0))
    size = task_of(config).input_size(config)
    return lambda: create_state(model, optimizer, size, config.seed, ema=False)


def _flat(state: TrainState) -> dict[Path, Any]:
    """Returns parameters and statistics by path."""
    parts = {part: getattr(state, part) for part in PARTS}
    return traverse_util.flatten_dict(parts)


def _state(create: Callable[[], TrainState], report: LoadReport) -> TrainState:
    """Returns the state at step 0. Of a fresh one only what is used is computed."""

    @jax.jit
    def rest() -> tuple[TrainState, dict[Path, jax.Array]]:
        state = create()
        fresh = {path: _flat(state)[path] for path in report.fresh}
        return state.replace(**dict.fromkeys(PARTS, {})), fresh

    state, fresh = rest()
    arrays = {path: jnp.asarray(array) for path, array in report.arrays.items()}
    return state.replace(**traverse_util.unflatten_dict({**arrays, **fresh}))


def _class_names(classes: int) -> Sequence[str]:
    if classes == CLASSES:
        return class_names()
    return [str(i) for i in range(classes)]


def _rows(
    report: LoadReport,
    shapes: dict[Path, tuple[int, ...]],
    found: Found,
    arrays: dict[str, Array],
) -> list[dict[str, Any]]:
    def row(name: str, group: Sequence[tuple[int, ...]], source: str) -> dict[str, Any]:
        numbers = sum(math.prod(shape) for shape in group)
        return {"name": name, "arrays": len(group), "numbers": numbers, "from": source}

    rows = []
    for part in dict.fromkeys(path[1] for path in shapes):
        taken = [p for p in report.arrays if p[1] == part and p not in report.zeros]
        if taken:
            rows.append(row(part, [shapes[path] for path in taken], "the file"))
    order = ("stem", "stage2", "stage3", "stage4", "stage5", "head")
    rows.sort(key=lambda row: order.index(row["name"]))
    if report.fresh:
        rows.append(row("head", [shapes[path] for path in report.fresh], "fresh"))
    for path in report.zeros:
        name = "/".join(path[1:])
        rows.append(row(name, [shapes[path]], "zeros: missing in the file"))
    for name, keys in found.left.items():
        left = [arrays[key].shape for key in keys]
        rows.append(row(keys[0] if len(keys) == 1 else name, left, "not used"))
    if report.counters:
        rows.append(row(COUNTER, [()] * report.counters, "not used"))
    return rows


def _summary(found: Found) -> str:
    """Returns a line that says which ResNet of the file was taken."""
    line = (
        f"Took the ResNet in section {found.section or '(top level)'}, under prefix "
        f"{found.prefix or '(none)'}, with head {found.head or '(none)'}."
    )
    if found.others:
        line += f" The file has others: --section {' or '.join(found.others)}."
    return line


def _notes(out: pathlib.Path, found: Found) -> list[str]:
    notes = [f"Wrote {out}; training starts from it by --config.init_from={out}"]
    if found.head:
        notes.append(f"As it is: python -m vt_flax.predict --workdir {out} IMAGE...")
    return notes


def _write(
    out: pathlib.Path,
    state: TrainState,
    config: ConfigDict,
    names: Sequence[str],
    record: dict[str, Any],
) -> None:
    """Writes a workdir, whole or not at all."""
    place = out.resolve()
    partial = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        checkpoints = Checkpoints(partial)
        checkpoints.save(0, state)
        checkpoints.close()
        if names:
            RunRecord(config.to_dict(), names).write(partial)
        (partial / RECORD).write_text(json.dumps(record, indent=2) + "\n")
        partial.replace(place)
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
