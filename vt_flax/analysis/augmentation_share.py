"""The augmentation's share of a training step."""

import statistics
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from vt_flax.parallel.mesh import make_mesh
from vt_flax.plan.compiled_step import costs
from vt_flax.plan.step import Step
from vt_flax.plan.topology import parse_topology

OFF = {"augment": "none", "erasing": 0.0, "mixup": 0.0, "cutmix": 0.0}


def without_augmentation(config: ConfigDict) -> ConfigDict:
    """Returns a configuration with mirroring and nothing else."""
    plain = config.copy_and_resolve_references()
    plain.unlock()
    plain.data.update(OFF)
    plain.lock()
    return plain


def measured_rows(config: ConfigDict, batch: int, rounds: int) -> list[dict[str, Any]]:
    """Times the step with and without augmentation on this machine's devices.

    Args:
      config: a resolved configuration.
      batch: examples in a step.
      rounds: steps of each, taken in turns: a machine's moods hit both.
    """
    configs = (config, without_augmentation(config))
    mesh = make_mesh(fsdp=config.parallel.fsdp)
    steps = [Step(c, mesh, batch) for c in configs]
    for step in steps:
        step.start()
    times = np.asarray([[step.seconds() for step in steps] for _ in range(rounds)])
    on, off = np.median(times, 0)
    # The median of the ratios of neighbors in time, not the ratio of medians.
    ratio = statistics.median(times[:, 0] / times[:, 1])
    device = jax.devices()[0].device_kind
    return [_row(f"seconds a step of {batch}, {device}", on, off, ratio)]


def compiled_rows(config: ConfigDict, topology: str) -> list[dict[str, Any]]:
    """Compares what the TPU compiler counts, with and without augmentation.

    Args:
      config: a resolved configuration; `batch_size` is sharded over all devices.
      topology: such as `v5e:2x2`.

    Raises:
      UserError: if libtpu is missing, or cannot compile the step.
    """
    on, off = costs([config, without_augmentation(config)], topology)
    place, batch = parse_topology(topology), config.batch_size
    images = batch / place.devices
    units = {
        "GFLOP an image": ("flops", 1e9 * images),
        "MB an image": ("bytes", 1e6 * images),
        "GB of a device's memory at work": ("temporary", 1e9),
        "thousand cycles an image outside of kernels": ("cycles", 1e3 * images),
    }
    where = f"{topology}, {batch // place.chips} a chip"
    return [
        _row(f"{name}, {where}", on[key] / unit, off[key] / unit)
        for name, (key, unit) in units.items()
        if on[key] and off[key]
    ]


def _row(what: str, on: float, off: float, ratio: float | None = None):
    return {
        "what": what,
        "with": float(f"{on:.4g}"),
        "without": float(f"{off:.4g}"),
        "ratio": round(float(on / off if ratio is None else ratio), 4),
    }
