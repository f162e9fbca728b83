"""Plans: cost and speed of a configuration on a topology that need not be there."""

import dataclasses
import re
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
from vt_flax.plan.topology import GIB, HERE
from vt_flax.plan.tpu_compiler import old_compiler, tpu_devices
from vt_flax.training.config_rules import check_step
from vt_flax.training.durations import duration_steps

# A measured step is run for at least so many seconds and steps.
SECONDS, STEPS = 10.0, 5
# Bytes that are needed and available, in the TPU compiler's message for a program that
# is too large: `(21.50G) exceeds available HBM (15.75G)` or `Used 18.2G of 15.75G hbm`.
OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"
SIZES = re.compile(
    r"([\d.]+)([KMGT]?)\)?(?: exceeds available \w+ \(| of )([\d.]+)([KMGT]?)"
)


@dataclasses.dataclass(frozen=True)
class Plan:
    """A training step's cost on a topology, and bounds on its time (the roofline).

    Attributes:
      case: what was planned.
      costs: of a device and a step, see `costs.read_costs`.
      measured: seconds per step if it was run, else 0.
    """

    case: Case
    costs: Mapping[str, Any]
    measured: float = 0.0

    @property
    def bounds(self) -> dict[str, float]:
        """Seconds per step that each part of the machine needs at its peak.

        That is `compute` for matrix products, `memory` for HBM traffic, of which caches
        can hide all but arguments and results, and `interconnect` for what chips send
        to each other.
        """
        place, costs = self.case.place, self.costs
        device = place.chip.device
        moved = costs["arguments" if device.cached else "traffic"]
        sent = sum(row["sent"] for row in costs["collectives"].values())
        return {
            "compute": 2 * costs["macs"] / device.flops,
            "memory": moved / device.bandwidth,
            "interconnect": sent / place.interconnect if place.interconnect else 0.0,
        }

    @property
    def limit(self) -> str:
        """Name of the part that sets the bound."""
        return max(self.bounds, key=self.bounds.get)

    @property
    def times(self) -> dict[str, float]:
        """Seconds per step, by kind.

        `bound` if all parts overlap perfectly, `estimate` if they work one after
        another, and `measured` if the step was run.
        """
        bounds = self.bounds
        traffic = self.costs["traffic"] / self.case.place.chip.device.bandwidth
        times = {
            "bound": max(bounds.values()),
            "estimate": bounds["compute"] + traffic + bounds["interconnect"],
        }
        return times | ({"measured": self.measured} if self.measured else {})

    @property
    def steps(self) -> int:
        """Number of steps of the run; 0 if the dataset's size is unknown."""
        examples, duration = self.case.facts.examples, self.case.config.duration
        if not examples and "step" not in duration:
            return 0
        return duration_steps(duration, examples=examples or 1, batch=self.case.batch)


def make_plan(case: Case, measure: bool = False) -> Plan:
    """Compiles a case's step, and returns its costs and bounds.

    Args:
      case: what to plan.
      measure: whether to run the step too, on this machine, for its median time.

    Raises:
      UserError: if the batch cannot be sharded or does not fit, or the step cannot be
        compiled.
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
        costs = read_costs(step, "" if here else place.name)
    except jax.errors.JaxRuntimeError as error:
        message = str(error)
        if OUT_OF_MEMORY in message:
            raise _does_not_fit(case, *read_sizes(message)) from error
        raise UserError(
            f"--topology {place.name}: {first_line(error)[:300]}"
        ) from error
    needed, available = costs["memory"]["peak"], place.chip.device.memory
    if here and needed > available:
        raise _does_not_fit(case, needed, available)
    return Plan(case, costs, _measure(step) if measure and here else 0.0)


def read_sizes(message: str) -> tuple[int, int]:
    """Returns the bytes needed and available in a compiler's message, or zeros."""
    match = SIZES.search(message)
    if not match:
        return 0, 0
    needed, available = (
        int(float(match[i]) * 1024 ** " KMGT".index(match[i + 1] or " "))
        for i in (1, 3)
    )
    return needed, available


def _measure(step: Step) -> float:
    """Returns the median seconds per step."""
    _print("running it")
    step.start()
    begin, times = time.perf_counter(), []
    while len(times) < STEPS or time.perf_counter() - begin < SECONDS:
        times.append(step.seconds())
    return statistics.median(times)


def _does_not_fit(case: Case, needed: int, available: int) -> UserError:
    excess = "more memory than a device has"
    if needed:
        excess = (
            f"{needed / GIB:.2f} GiB of a device's {available / GIB:.2f}, "
            f"{(needed - available) / GIB:.2f} GiB too much"
        )
    return UserError(
        f"--topology {case.place.name}: batch {case.batch:,} "
        f"({case.batch // case.place.chips:,} a chip) needs {excess}: use a smaller "
        "batch"
    )


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
