"""`benchmark step`: time, rate and memory of a training step on this machine."""

import collections
import contextlib
import dataclasses
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vt_flax.data.source import cached
from vt_flax.paper.macs import count
from vt_flax.parallel.mesh import describe, make_mesh
from vt_flax.plan.machine import measured_peak, published_peak
from vt_flax.plan.step import Step
from vt_flax.training.config_rules import check_step
from vt_flax.training.loop import device_batches
from vt_flax.training.requests import Requests
from vt_flax.training.run import Run, prepare

# A measurement takes as many steps as fill this, so that dispatching one is negligible.
SECONDS = 0.5
OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"


def report(
    configs: Mapping[int, ConfigDict],
    *,
    rounds: int,
    warmup: int,
    peak: str,
    loop: bool,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[str]]:
    """Measures a configuration's training step at some batch sizes.

    Args:
      configs: resolved configurations of one network, by batch size.
      rounds: number of measurements.
      warmup: number of steps before them, at least 1.
      peak: peak FLOP/s that MFU is relative to, `published` or `measured`.
      loop: whether to measure the training loop with its input too.

    Returns:
      Records of rates, of `ours` (the step) and `loop` by batch size; records of
      compile time and memory by batch size; and notes. A batch that does not fit into
      memory is left out with a note.

    Raises:
      UserError: if the devices cannot share a batch, or the dataset is not there.
    """
    notes: list[str] = []
    config = next(iter(configs.values()))
    mesh = make_mesh(fsdp=config.parallel.fsdp)
    flops = find_peak(mesh, config.model.dtype, peak, notes)
    rates, costs = [], []
    for batch, config in configs.items():
        check_step(config, mesh.size)
        run = prepare(config) if loop else None
        if run:
            config.model.num_classes = run.model.num_classes
        try:
            step = Step(config, mesh, batch)
            costs.append({"batch": batch, **compile_step(step)})
            steps = warm_up(step, warmup)
            times = [step.seconds(steps) for _ in range(rounds)]
        except jax.errors.JaxRuntimeError as error:
            if OUT_OF_MEMORY not in str(error):
                raise
            notes.append(f"batch {batch} does not fit into the device's memory")
            continue
        macs, name = count(step.model, step.size).total_macs, config.model.name
        rates.append(record("ours", name, batch, times, times, macs, flops))
        if run:
            found = loop_times(run, step, rounds, steps)
            ours = [statistics.median(times)] * rounds
            name = f"{name} on {run.train_source.name}"
            rates.append(record("loop", name, batch, found, ours, macs, flops))
    return rates, costs, notes


def compile_step(step: Step) -> dict[str, float]:
    """Compiles and starts a step.

    Returns:
      Seconds to trace and to compile, the latter from JAX's persistent cache if there
      is one; and MB of each device: of the step's arguments (state and batch), and
      beside them while it works, as the compiler plans it.
    """
    begin = time.perf_counter()
    lowered = step.trace().lower()
    traced = time.perf_counter()
    compiled = lowered.compile()
    ready = time.perf_counter()
    step.start(compiled)
    memory = compiled.memory_analysis()
    return {
        "tracing s": short(traced - begin),
        "compiling s": short(ready - traced),
        "arguments MB": short(memory.argument_size_in_bytes / 1e6),
        "working MB": short(memory.temp_size_in_bytes / 1e6),
    }


def warm_up(step: Any, steps: int) -> int:
    """Runs some steps of a started step; returns how many steps fill SECONDS."""
    for _ in range(steps):
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

    `ours over it` is the median over rounds of its time relative to ours: what slows
    the machine down for a while affects both times of a round. `MFU %` (Chowdhery et
    al., 2022, appendix B) counts two operations per multiply-add of the network,
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
        "batch": batch,
        "ms": short(1e3 * statistics.median(times)),
        "least ms": short(1e3 * min(times)),
        "images/s": short(images),
        "ours over it": round(statistics.median(ratios), 3),
        "MFU %": round(100 * 6 * macs * images / peak, 2) if peak else None,
        "what": what,
    }


def short(value: float) -> float:
    """Returns a figure rounded to four significant digits."""
    return float(f"{value:.4g}")
