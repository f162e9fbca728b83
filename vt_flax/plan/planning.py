"""Plans: cost and speed of a configuration on a topology that need not be there."""

import statistics
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax

from vt_flax.errors import UserError, first_line
from vt_flax.parallel.mesh import make_mesh
from vt_flax.plan.cases import Case
from vt_flax.plan.costs import read_costs
from vt_flax.plan.step import Step
from vt_flax.plan.topology import HERE
from vt_flax.plan.tpu_compiler import old_compiler, tpu_devices
from vt_flax.training.config_rules import check_step

# A measured step is run for at least so many seconds and steps.
SECONDS, STEPS = 10.0, 5


def make_plan(case: Case, measure: bool = False) -> dict[str, Any]:
    """Compiles a case's step, and returns its costs and bounds, see `record`.

    Args:
      case: what to plan.
      measure: whether to run the step too, on this machine, for its median time.

    Raises:
      UserError: if the batch cannot be sharded, or the step cannot be compiled or run,
        as when it needs more memory than a device has.
    """
    config, place = case.config, case.place
    check_step(config, place.devices)
    here = place.name == HERE
    if not here and (warning := old_compiler(place.name)):
        _print(warning)
    mesh = make_mesh(None if here else tpu_devices(place.name), config.parallel.fsdp)
    step = Step(config, mesh, case.batch)
    _print(f"{case.label}, batch {case.batch:,}: compiling {config.model.name}")
    try:
        costs = read_costs(step)
        return record(case, costs, _measure(step) if measure else 0.0)
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f"--topology {place.name}, batch {case.batch:,}: {first_line(error)[:300]}"
        ) from error


def record(
    case: Case, costs: Mapping[str, Any], measured: float = 0.0
) -> dict[str, Any]:
    """Returns a plan in bytes, seconds and multiply-adds, of a device and a step.

    Keys that begin with `bound_` say how long a step takes at least (the roofline):
    each part of the machine at its peak, and all of them at once. With `estimate_` they
    work one after another, and `measured_` is the step as it was run.

    Args:
      case: what was planned.
      costs: of a device and a step, see `read_costs`.
      measured: seconds per step if it was run, otherwise 0.
    """
    place, device = case.place, case.place.chip.device
    images = case.batch / place.devices
    memory_seconds = costs["traffic"] / device.bandwidth
    sent = sum(row["sent"] for row in costs["collectives"].values())
    bounds = {
        "compute": 2 * costs["macs"] / device.flops,
        # Caches can hide all traffic but that of arguments and results.
        "memory": costs["arguments"] / device.bandwidth
        if device.cached
        else memory_seconds,
        "interconnect": sent / place.interconnect if place.interconnect else 0.0,
    }
    times = {
        "bound": max(bounds.values()),
        "estimate": bounds["compute"] + memory_seconds + bounds["interconnect"],
    }
    if measured:
        times["measured"] = measured
    found = {
        "topology": place.name,
        **case.swept,
        "chips": place.chips,
        "devices": place.devices,
        "hosts": place.hosts,
        "batch": case.batch,
        "memory_available": device.memory,
        **{f"memory_{key}": value for key, value in costs["memory"].items()},
        "forward_macs_per_image": costs["forward_macs"],
        "macs_per_image": round(costs["macs"] / images),
        "hbm_bytes_per_image": round(costs["traffic"] / images),
        "compiler_bytes_per_image": round(costs["bytes"] / images),
        "loops_of_unknown_length": costs["unknown_loops"],
        "collectives": costs["collectives"],
        **{f"bound_{name}_seconds": seconds for name, seconds in bounds.items()},
        "bound_by": max(bounds, key=bounds.get),
        "examples": case.facts.examples or None,
        "steps": case.steps or None,
    }
    for name, seconds in times.items():
        rate = case.batch / seconds
        hours = case.steps * seconds / 3600 if case.steps else None
        found |= {
            f"{name}_seconds": seconds,
            f"{name}_images_per_second": rate,
            f"{name}_images_per_second_of_a_chip": rate / place.chips,
            f"{name}_images_per_second_of_a_host": rate / place.hosts,
            f"{name}_hours": hours,
            f"{name}_chip_hours": hours and hours * place.chips,
        }
    return found


def _measure(step: Step) -> float:
    """Returns the median seconds per step."""
    _print("running it")
    step.start()
    begin, times = time.perf_counter(), []
    while len(times) < STEPS or time.perf_counter() - begin < SECONDS:
        times.append(step.seconds())
    return statistics.median(times)


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
