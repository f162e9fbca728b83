"""The measurements of a training step on this machine, one after the other."""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vt_flax.analysis.references.plain import plain_resnet
from vt_flax.errors import UserError
from vt_flax.measure.compile_time import compile_costs
from vt_flax.measure.step_rate import BESIDE, measure
from vt_flax.measure.step_tables import record
from vt_flax.parallel.mesh import describe, make_mesh
from vt_flax.plan.peaks import measured_peak, published_peak
from vt_flax.plan.steps import OURS, STEPS
from vt_flax.training.config_rules import check_step
from vt_flax.training.run import prepare
from vt_flax.training.tasks import task_of


def report(
    configs: Mapping[int, ConfigDict],
    references: Sequence[str],
    *,
    rounds: int,
    warmup: int,
    peak: str,
    loop: bool,
    compiling: bool,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Measures a configuration's training step at some batch sizes.

    Args:
      configs: resolved configurations of one network, by the examples in a step.
      references: see `step_rate.find_references`.
      rounds: turns of each.
      warmup: steps of each before them, at least one.
      peak: what rates are compared with, `published` or `measured`.
      loop: whether to measure the whole loop, if the dataset is there.
      compiling: whether to measure compile time and memory too.

    Returns:
      A record for each kind of step and batch size, and lines about all of them.

    Raises:
      UserError: if nothing can be measured with a configuration or a batch size.
    """
    notes: list[str] = []
    config = next(iter(configs.values()))
    if loop := loop and _find_data(config, notes):
        for other in configs.values():
            other.model.num_classes = config.model.num_classes
    # First, since a TPU serves one process at a time.
    costs = {}
    for batch in configs if compiling else ():
        for name in (OURS, *(name for name in references if name in STEPS)):
            what = f"compiling {name} at batch {batch}"
            print(f"{what}, twice", file=sys.stderr, flush=True)
            try:
                costs[name, batch] = compile_costs(name, configs[batch], batch)
            except RuntimeError as error:
                notes.append(f"{what}: {error}")

    if any(name in BESIDE for name in references):
        # What JAX takes of a GPU's memory before it needs it, another process lacks.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    mesh = make_mesh(fsdp=config.parallel.fsdp)
    references = _comparable(references, mesh, notes)
    most = _peak(config, mesh, peak, notes)
    if references:
        notes.append(
            f"{plain_resnet(config).name} is plain; {config.model.name} has besides: "
            f"{_besides(config) or 'nothing'}"
        )
    records = []
    for batch, config in configs.items():
        check_step(config, mesh.size)
        rates, reasons = measure(
            config,
            mesh,
            batch,
            references=references,
            rounds=rounds,
            warmup=warmup,
            run=prepare(config) if loop else None,
        )
        notes += reasons
        records += [record(x, costs.get((x.step, batch), {}), most) for x in rates]
    return records, notes


def _find_data(config: ConfigDict, notes: list[str]) -> bool:
    """Tells whether the dataset is there; its classes become the network's."""
    try:
        source = task_of(config).open_source(config, config.data.train_split)
    except UserError as error:
        notes.append(f"the whole loop is left out: {error}")
        return False
    if not config.model.num_classes:
        config.model.num_classes = len(source.class_names)
    return True


def _comparable(
    references: Sequence[str], mesh: Mesh, notes: list[str]
) -> Sequence[str]:
    """Returns those references that can run where we do."""
    reason = ""
    if mesh.devices.flat[0].platform == "tpu":
        reason = "it runs on no TPU"
    elif mesh.devices.flat[0].platform != "cpu" and mesh.size > 1:
        reason = "it runs on one GPU; show JAX but one (CUDA_VISIBLE_DEVICES=0)"
    if not reason:
        return references
    notes += [f"{name} is left out: {reason}" for name in references if name in BESIDE]
    return [name for name in references if name not in BESIDE]


def _peak(config: ConfigDict, mesh: Mesh, kind: str, notes: list[str]) -> float | None:
    device, dtype = jax.devices()[0].device_kind, config.model.dtype
    notes.append(f"{describe(mesh)}, {dtype}")
    if kind == "measured":
        found = measured_peak(mesh, dtype)
        notes.append(f"peak, by products of matrices here: {found / 1e12:.4g} TFLOP/s")
        return found
    found = published_peak(device, dtype)
    if found is None:
        notes.append(f"no MFU: the peak of {device} is not known; try --peak measured")
        return None
    notes.append(f"peak, as published: {mesh.size * found / 1e12:.4g} TFLOP/s")
    return mesh.size * found


def _besides(config: ConfigDict) -> str:
    """Returns what our step has that those of plain ResNets have not, in words."""
    data, model = config.data, config.model
    parts = {
        "Visual Transformers for the last stage": model.name.startswith("vt_"),
        "mirroring": data.flip,
        f"augmentation ({data.augment})": data.augment != "none",
        "erasing": data.erasing,
        "mixing": data.mixup or data.cutmix,
        "dropout": model.get("dropout", 0.0),
        "stochastic depth": model.get("survival_probability", 1.0) < 1,
        "distillation": config.distillation.teacher,
        f"{config.grad_accum_steps} parts of a batch": config.grad_accum_steps > 1,
        f"BatchNorm over {model.bn_group_size} examples": model.bn_group_size,
        "frozen BatchNorm": model.bn_frozen,
    }
    return ", ".join(name for name, on in parts.items() if on)
