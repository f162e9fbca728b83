"""Plans: cost and speed of a configuration on a topology that need not be there."""

import dataclasses
import statistics
import sys
import time
from collections.abc import Mapping
from typing import Any

from vt_flax.errors import UserError
from vt_flax.parallel.mesh import make_mesh
from vt_flax.plan.cache import PlanCache, cache_key
from vt_flax.plan.cases import Case
from vt_flax.plan.compiled_step import excess, pod_costs
from vt_flax.plan.roofline import Roofline, roofline
from vt_flax.plan.step import Step
from vt_flax.plan.step_costs import read_costs
from vt_flax.training.config_rules import check_step
from vt_flax.training.durations import duration_steps

# A measured step is run for so long, and at least so often.
SECONDS, STEPS = 10.0, 5


@dataclasses.dataclass(frozen=True)
class Plan:
    """The result for a case.

    Attributes:
      case: what was planned.
      costs: of a device and a step, see `step_costs.read_costs`.
      roofline: bounds on the step's time.
      measured: seconds per step if it was run, else 0.
    """

    case: Case
    costs: Mapping[str, Any]
    roofline: Roofline
    measured: float = 0.0

    @property
    def steps(self) -> int:
        """Number of steps of the run; 0 if the dataset's size is unknown."""
        examples, duration = self.case.facts.examples, self.case.config.duration
        if not examples and "step" not in duration:
            return 0
        return duration_steps(duration, examples=examples or 1, batch=self.case.batch)

    def images_per_second(self, seconds: float) -> float:
        """Returns images per second of all chips, from seconds per step."""
        return self.case.batch / seconds

    def hours(self, seconds: float) -> float | None:
        """Returns hours of the run, from seconds per step; None if unknown."""
        return self.steps * seconds / 3600 if self.steps else None


def plan_pod(case: Case, cache: PlanCache, host_rate: float = 0.0) -> Plan:
    """Compiles a case's step with the TPU compiler, unless its costs are cached.

    Args:
      case: what to plan.
      cache: costs of earlier plans.
      host_rate: see `roofline`.

    Raises:
      UserError: if the batch cannot be sharded or does not fit, or the step cannot be
        compiled.
    """
    config, name = case.config, case.place.name
    check_step(config, case.place.devices)
    # A teacher's network is read from a workdir, which may change.
    key = None if config.distillation.teacher else cache_key(config, name)
    costs = cache.get(key) if key else None
    if costs:
        _print(f"{case.label}, batch {case.batch:,}: compiled before")
    else:
        _print(f"{case.label}, batch {case.batch:,}: {config.model.name}")
        (costs,) = pod_costs([config], name)
        if key:
            cache.put(key, costs)
    if "too_large" in costs:
        raise _does_not_fit(case, **costs["too_large"])
    return Plan(case, costs, roofline(costs, case.place, case.batch, host_rate))


def plan_here(
    case: Case,
    host_rate: float = 0.0,
    measure: bool = False,
) -> Plan:
    """Compiles a case's step for this machine's devices, and runs it if asked to.

    Args:
      case: on a topology of `this_machine`.
      host_rate: see `roofline`.
      measure: whether to run the step, for its median time.

    Raises:
      UserError: if the batch cannot be sharded, or the step does not fit.
    """
    config = case.config
    check_step(config, case.place.devices)
    _print(f"{case.label}, batch {case.batch:,}: {config.model.name}")
    step = Step(config, make_mesh(fsdp=config.parallel.fsdp), case.batch)
    costs = read_costs(step)
    needed, available = costs["memory"]["peak"], case.place.chip.device.memory
    if needed > available:
        raise _does_not_fit(case, needed, available)
    seconds = 0.0
    if measure:
        _print("running it")
        step.start()
        begin, times = time.perf_counter(), []
        while len(times) < STEPS or time.perf_counter() - begin < SECONDS:
            times.append(step.seconds())
        seconds = statistics.median(times)
    bounds = roofline(costs, case.place, case.batch, host_rate)
    return Plan(case, costs, bounds, seconds)


def _does_not_fit(case: Case, needed: int, available: int) -> UserError:
    return UserError(
        f"--topology {case.place.name}: batch {case.batch:,} "
        f"({case.batch // case.place.chips:,} a chip) needs "
        f"{excess(needed, available)}: use a smaller batch"
    )


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
