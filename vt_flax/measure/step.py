"""`benchmark step`: time, rate and memory of a training step on this machine."""

import collections
import contextlib
import dataclasses
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vt_flax.data.source import cached
from vt_flax.errors import UserError
from vt_flax.measure.compile_time import COSTS, compile_costs
from vt_flax.paper.macs import count
from vt_flax.parallel.mesh import describe, make_mesh
from vt_flax.plan.machine import measured_peak, published_peak
from vt_flax.plan.step import Step
from vt_flax.training.config_rules import check_step
from vt_flax.training.loop import device_batches
from vt_flax.training.requests import Requests
from vt_flax.training.run import Run, prepare
from vt_flax.training.tasks import task_of

# A measurement takes as many steps as fill this, so that dispatching one is negligible.
SECONDS = 0.5
OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"
RATE_COLUMNS = {
    "step": "step",
    "batch": "batch",
    "ms": "ms",
    "ms_quartiles": "quartiles",
    "images_per_second": "images/s",
    "ours_ratio": "ours over it",
    "mfu": "MFU %",
    "what": "what",
}
COST_COLUMNS = {
    "step": "step",
    "batch": "batch",
    "trace_s": "tracing s",
    "compile_s": "compiling s",
    "cached_s": "from the cache s",
    "arguments_mb": "state, batch MB",
    "working_mb": "at work MB",
    "peak_mb": "peak MB",
}


def report(
    configs: Mapping[int, ConfigDict],
    *,
    rounds: int,
    warmup: int,
    peak: str,
    loop: bool,
    compiling: bool,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Measures a configuration's training step at some batch sizes.

    Args:
      configs: resolved configurations of one network, by batch size.
      rounds: number of measurements.
      warmup: number of steps before them, at least 1.
      peak: peak FLOP/s that MFU is relative to, `published` or `measured`.
      loop: whether to measure the training loop with its input too, if the dataset is
        there.
      compiling: whether to measure compile time and memory too.

    Returns:
      Records of `ours` (the step) and `loop` by batch size, and notes. A batch that
      does not fit into memory is left out with a note.

    Raises:
      UserError: if the devices cannot share a batch.
    """
    notes: list[str] = []
    config = next(iter(configs.values()))
    if loop and (loop := _find_data(config, notes)):
        for other in configs.values():
            other.model.num_classes = config.model.num_classes
    # Before this process takes the devices: a TPU serves one process at a time.
    costs = {}
    for batch in configs if compiling else ():
        print(f"compiling at batch {batch}, twice", file=sys.stderr, flush=True)
        try:
            costs[batch] = compile_costs(configs[batch], batch)
        except RuntimeError as error:
            notes.append(f"compiling at batch {batch}: {error}")
    mesh = make_mesh(fsdp=config.parallel.fsdp)
    flops = find_peak(mesh, config.model.dtype, peak, notes)
    records = []
    for batch, config in configs.items():
        check_step(config, mesh.size)
        try:
            step = Step(config, mesh, batch)
            steps = start(step, warmup)
            times = [step.seconds(steps) for _ in range(rounds)]
        except jax.errors.JaxRuntimeError as error:
            if OUT_OF_MEMORY not in str(error):
                raise
            notes.append(f"batch {batch} does not fit into the device's memory")
            continue
        macs, name = count(step.model, step.size).total_macs, config.model.name
        row = record("ours", name, batch, times, times, macs, flops)
        records.append(row | costs.get(batch, {}))
        if loop:
            run = prepare(config)
            found = loop_times(run, step, rounds, steps)
            ours = [statistics.median(times)] * rounds
            name = f"{name} on {run.train_source.name}"
            records.append(record("loop", name, batch, found, ours, macs, flops))
    return records, notes


def start(step: Any, warmup: int) -> int:
    """Starts and warms up a step; returns how many steps fill SECONDS."""
    step.start()
    for _ in range(warmup):
        seconds = step.seconds()
    return max(1, math.ceil(SECONDS / seconds))


def loop_times(run: Run, step: Step, rounds: int, steps: int) -> list[float]:
    """Times the training loop on a run's examples, read from storage as in training.

    Evaluations and checkpoints are not included.

    Args:
      run: see `run.prepare`.
      step: a started step of the run's configuration.
      rounds: number of measurements.
      steps: number of steps of each.

    Returns:
      Mean seconds per step of each round.
    """
    run = dataclasses.replace(run, total_steps=10**9)
    source = run.train_source
    if run.config.data.cache:
        source = cached(source)
    requests = Requests(run.mesh)
    pending: collections.deque = collections.deque()
    times = []
    with contextlib.closing(device_batches(run, source, 0)) as batches:

        def advance() -> None:
            pending.append(step.advance(next(batches) | requests.batch()))
            # Metrics are fetched one step late, as in training.
            if len(pending) > 1:
                jax.device_get(pending.popleft())

        # Batches that were prefetched before the first step would seem to be free.
        for _ in range(run.config.data.prefetch + 3):
            advance()
        for _ in range(rounds):
            begin = time.perf_counter()
            for _ in range(steps):
                advance()
            times.append((time.perf_counter() - begin) / steps)
    return times


def find_peak(mesh: Mesh, dtype: str, kind: str, notes: list[str]) -> float | None:
    """Returns the peak FLOP/s of a mesh, `published` or `measured`, and notes which."""
    device = jax.devices()[0].device_kind
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


def record(
    step: str,
    what: str,
    batch: int,
    times: Sequence[float],
    ours: Sequence[float],
    macs: int,
    peak: float | None,
) -> dict[str, Any]:
    """Returns the record of a measured step.

    `ours_ratio` is the median over rounds of its time relative to ours: what slows the
    machine down for a while affects both times of a round. `mfu` (Chowdhery et al.,
    2022, appendix B) is in percent: two operations per multiply-add of the network,
    forward and, twice, backward.

    Args:
      step: its name.
      what: the network, and what computes it.
      batch: batch size.
      times: seconds per step, by round.
      ours: seconds per step of ours, by round.
      macs: multiply-adds of the network for one image.
      peak: peak FLOP/s of all devices; None if unknown.
    """
    images = batch / statistics.median(times)
    ratios = [its / own for its, own in zip(times, ours, strict=True)]
    return {
        "step": step,
        "what": what,
        "batch": batch,
        "ms": short(1e3 * statistics.median(times)),
        "ms_quartiles": [short(1e3 * x) for x in _quartiles(times)],
        "images_per_second": short(images),
        "ours_ratio": round(statistics.median(ratios), 3),
        "mfu": round(100 * 6 * macs * images / peak, 2) if peak else None,
        **dict.fromkeys(COSTS),
    }


def short(value: float) -> float:
    """Returns a figure rounded to four significant digits."""
    return float(f"{value:.4g}")


def rate_rows(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the table of rates."""
    return [
        {title: _text(row[key]) for key, title in RATE_COLUMNS.items()}
        for row in records
    ]


def cost_rows(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the table of compile times and memory, where they were measured."""
    return [
        {
            title: short(row[key]) if isinstance(row[key], float) else row[key]
            for key, title in COST_COLUMNS.items()
        }
        for row in records
        if row["compile_s"] is not None
    ]


def _text(value: Any) -> Any:
    return " to ".join(map(str, value)) if isinstance(value, list) else value


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
    """Returns the lower and upper quartile, linearly interpolated."""
    if len(values) == 1:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def _find_data(config: ConfigDict, notes: list[str]) -> bool:
    """Returns whether the dataset is there; the network gets its number of classes."""
    try:
        source = task_of(config).open_source(config, config.data.train_split)
    except UserError as error:
        notes.append(f"the whole loop is left out: {error}")
        return False
    if not config.model.num_classes:
        config.model.num_classes = len(source.class_names)
    return True
